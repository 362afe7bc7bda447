"""From rounds to measurements: what each round found, target by target, becomes one list of repeats a figure.

Rule: no clock and no process here.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.measure import figure, times
from benchmarks.results_file import Measurement, Results
from engine.plans.sidecar import PRECISIONS

Figures = dict[str, float]
"""Metric -> value."""
Round = dict[tuple[str, str], Figures]
"""Target and point -> what one round found there."""
FloorOf = Callable[[str, str, str], tuple[str, str, str] | None]
"""Target, point and metric -> those of what it is a multiple of."""

_UNITS: tuple[tuple[str, str, Literal["higher", "lower"]], ...] = (
    ("jobs_per_s", "jobs/s", "higher"),
    ("rows_per_s", "rows/s", "higher"),
    ("_cosine", "", "higher"),
    ("_ms", "ms", "lower"),
    ("_us", "us", "lower"),
    ("_mb", "MB", "lower"),
    ("_s", "s", "lower"),
)


REACHED = 0.95
"""Of what an open loop offers; where less is answered in its time, the queue grows for as long as it lasts."""
_PRECISION = re.compile(rf"-({'|'.join(PRECISIONS)})(?=-|$)")
_ENGINE = re.compile(r"-(tensorrt|onnxruntime-cuda|onnxruntime-cpu)(?=-|$)")
_SHAPE = re.compile(r"(?:(?P<of>.*), )?batch (?P<batch>\d+)(?:, (?P<tokens>\d+) tokens)?")


class Shape(NamedTuple):
    """Where an engine was measured: what a point such as "bert-base, batch 8, 128 tokens" says."""

    batch: int
    tokens: int
    of: str
    """The rest of the point: the model, or nothing."""


def shape(point: str) -> Shape | None:
    """The shape in the name of a point; None where there is no batch in it. Without tokens they are 0."""
    found = _SHAPE.fullmatch(point)
    return Shape(int(found["batch"]), int(found["tokens"] or 0), found["of"] or "") if found else None


def unit(metric: str) -> tuple[str, Literal["higher", "lower"]]:
    """The unit of a metric, told by the end of its name, and which way is better; else a count, lower is better."""
    return next(((text, better) for end, text, better in _UNITS if metric.endswith(end)), ("", "lower"))


def measurements(
    scenario: str, rounds: Sequence[Round], floor: FloorOf = lambda target, point, metric: None
) -> tuple[Measurement, ...]:
    """Each figure of each target and point, in the order of the first round that has it; None where a round lacks it.

    A floor that was not measured is left out.
    """
    keys = list(dict.fromkeys((*where, metric) for found in rounds for where in found for metric in found[where]))
    made = []
    for target, point, metric in keys:
        below = floor(target, point, metric)
        text, better = unit(metric)
        repeats = tuple(_known(found.get((target, point), {}).get(metric)) for found in rounds)
        made.append(
            Measurement(scenario, target, point, metric, text, better, repeats, below if below in keys else None)
        )
    return tuple(made)


def _known(value: float | None) -> float | None:
    """As it is read from a file again: NaN, of a round without answers, is no figure, and would spoil any order."""
    return None if value is None or math.isnan(value) else value


def target_of(engine: str, precision: str = "fp32") -> str:
    """What this worker is called in results: ours, with the engine where it was told one, and what is not fp32."""
    return "-".join(["ours", *([engine] if engine != "auto" else []), *([precision] if precision != "fp32" else [])])


def plain(target: str) -> str:
    """`target` without its precision: `ours-fp16-alone` is `ours-alone`."""
    return _PRECISION.sub("", target)


def named_precision(target: str) -> str | None:
    """The precision in a target's name; None where there is none in it."""
    found = _PRECISION.search(target)
    return found[1] if found else None


def without_engine(target: str) -> str:
    """`target` without the engine that it was told: `ours-tensorrt-fp16` is `ours-fp16`."""
    return _ENGINE.sub("", target)


def named_engine(target: str) -> str | None:
    """The engine in a target's name; None where there is none in it."""
    found = _ENGINE.search(target)
    return found[1] if found else None


def median_ratio(results: Results, one: Measurement) -> str:
    """The median of the ratios to the floor, as in 1.2x; "-" without a floor."""
    ratios = results.ratios(one)
    return times(statistics.median(ratios) if ratios else None)


def spread(one: Measurement) -> str:
    """The median, and the least and the greatest of the repeats."""
    values = [value for value in one.repeats if value is not None]
    if len(values) < 2:
        return figure(one.median)
    return f"{figure(one.median)} ({figure(min(values))}-{figure(max(values))})"


def merged(parts: Mapping[str, Results]) -> Results:
    """Several scenarios' results as one; details and options by scenario. The environment is the first one's."""
    return Results(
        next(iter(parts.values())).environment,
        {name: part.options for name, part in parts.items()},
        tuple(one for part in parts.values() for one in part.measurements),
        {name: part.details for name, part in parts.items()},
    )


def options_of(arguments: Mapping[str, object]) -> dict[str, object]:
    """A command's options as a results file has them: no paths but their last parts, which are no one's machine."""
    kept = {name: value for name, value in arguments.items() if name not in ("command", "json")}
    return {name: value.name if isinstance(value, Path) else value for name, value in kept.items()}
