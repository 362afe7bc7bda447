"""From the times of `latency` to a results file, and its table. Rule: pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.measure import MISSING, figure, markdown, percentile, ratio, times
from benchmarks.results_file import Measurement, Results
from benchmarks.rounds import Shape, plain, shape
from benchmarks.shapes import Found

SCENARIO = "latency"
COLUMNS: Mapping[str, str] = {
    "ours-alone": "alone",
    "ours": "copies",
    "ours-handler": "handler",
    "floor": "onnxruntime alone",
    "torch-eager": "torch eager",
    "torch-compile": "torch compile",
}
"""Target, without its precision, -> what the table calls it, in order."""


def measurements(found: Found, metrics: Mapping[str, float], scenario: str = SCENARIO) -> Iterator[Measurement]:
    """`metrics`: name -> percentile. Multiples of the floor where that ran at the same point."""
    floors = {point for target, point in found.took if target == "floor"}
    for (target, point), rounds in found.took.items():
        for metric, percent in metrics.items():
            repeats = tuple(None if one is None else percentile(one.ms, percent) for one in rounds)
            floor = ("floor", point, metric) if target != "floor" and point in floors else None
            yield Measurement(scenario, target, point, metric, "ms", "lower", repeats, floor)


def table(results: Results, published: Sequence[Mapping[str, Any]]) -> str:
    """p50 and the last percentile of everything measured, beside what was published; Markdown."""
    found = results.of(SCENARIO)
    last = highest(found)
    names = [name for name in COLUMNS if any(plain(one.target) == name for one in found)]
    lines = []
    for point in dict.fromkeys(one.point for one in found):
        place = shape(point)
        assert place is not None
        cells = [place.of, str(place.tokens), str(place.batch)]
        for name in names:
            p50 = _p50(results, name, point)
            high = _value(results, name, point, last)
            cells.append(MISSING if p50 is None else f"{figure(p50)} / {figure(high)}")
        torch = _p50(results, "torch-compile", point) or _p50(results, "torch-eager", point)
        cells.append(times(ratio(torch, _p50(results, "ours", point))))
        others = [f"{one['gpu']} {one['ms']}" for one in published if _is_at(one, place)]
        lines.append([*cells, ", ".join(others) or MISSING])
    shown = f"p50 / {last.removesuffix('_ms')} ms"
    header = ["model", "seq", "batch", *(f"{COLUMNS[name]}, {shown}" for name in names), "torch / copies"]
    told = [f"{where}: {error}" for where, error in results.details.get("errors", {}).items()]
    return "\n".join([markdown([*header, "published, ms"], lines), *told])


def highest(found: Iterable[Measurement]) -> str:
    """The metric of the largest percentile."""
    metrics = (one.metric for one in found if one.metric.endswith("_ms"))
    return max(metrics, key=lambda metric: float(metric[1 : -len("_ms")]), default="p50_ms")


def _p50(results: Results, target: str, point: str) -> float | None:
    return _value(results, target, point, "p50_ms")


def _value(results: Results, target: str, point: str, metric: str) -> float | None:
    """Of `target` in whatever precision: a run has one."""
    found = (
        one for one in results.of(SCENARIO) if (plain(one.target), one.point, one.metric) == (target, point, metric)
    )
    one = next(found, None)
    return None if one is None or math.isnan(one.median) else one.median


def _is_at(published: Mapping[str, Any], place: Shape) -> bool:
    return (published["batch"], published["seq"], published["model"]) == place
