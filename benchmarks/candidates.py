"""What was measured of this worker, as points to choose from: loads that it served, and runs of its engine by batch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.report.stored import Shape, Source, Stored, shape

_LOADS = ("load", "peers")
_GRIDS = ("throughput", "latency")
"""The grid of the bundle itself goes before that of encoders with random weights."""
_MEAN = " (mean times, which a p99 is above)"

_NO_SETTING = ("ours-fake", "ours-http", "ours-alone", "ours-handler")
"""Of us as well, but no engine and precision of their own."""


@dataclass(frozen=True)
class Point:
    """A target at a load, or at a shape of the grid where there is no load."""

    target: str
    where: str
    jobs_per_s: float
    p99_ms: float
    concurrency: int
    order: int
    """Open loops 0, closed ones 1, engine alone 2."""


@dataclass(frozen=True)
class Grid:
    """Runs of one target at one length, by batch."""

    tokens: int
    where: str
    runs: dict[int, tuple[float, float]]
    """Batch -> p50 and p99 in ms."""


def our_targets(known: Stored) -> list[str]:
    """This worker's engines and precisions, in the order of the files; not the one without a model."""
    scenarios = [(source, scenario) for source in known.sources for scenario in (*_LOADS, *_GRIDS)]
    names = [target for source, scenario in scenarios for target in source.targets(scenario)]
    return [name for name in dict.fromkeys(names) if name.split("-")[0] == "ours" and name not in _NO_SETTING]


def precision_of(known: Stored, target: str) -> str:
    """What the name of a target says; else what the command was told; else fp32, the default of export."""
    told = (
        source.results.options.get("precision")
        for source in known.sources
        for scenario in _GRIDS + _LOADS
        if target in source.targets(scenario)
    )
    named = re.search(r"(fp32|tf32|fp16|bf16|int8)", target)
    return named[1] if named else next((str(one) for one in told if one), "fp32")


def points_of(known: Stored, target: str, length: int | None, model: str | None) -> Iterator[Point]:
    """Loads; where there are none, the engine alone, twice whose p99 a job waits."""
    loads = [point for source in known.sources for scenario in _LOADS for point in _loads(source, scenario, target)]
    if loads:
        yield from loads
        return
    grid = grid_of(known, target, length, model)
    for batch, (p50, p99) in (grid.runs if grid else {}).items():
        assert grid is not None
        where = f"{grid.where}, batch {batch}: the engine alone, without a worker around it; `load` of it would tell"
        yield Point(target, where, batch / p50 * 1e3, 2 * p99, 2 * batch, 2)


def _loads(source: Source, scenario: str, target: str) -> Iterator[Point]:
    names = dict.fromkeys(one.point for one in source.results.of(scenario) if one.target == target)
    for name in names:
        closed = re.fullmatch(r"(\d+) clients?", name)
        if not closed and not name.startswith("rate "):
            continue
        rate, p99 = (source.value(scenario, target, name, metric) for metric in ("jobs_per_s", "p99_ms"))
        if rate is None or p99 is None:
            continue
        together = int(closed[1]) if closed else max(1, math.ceil(rate.median * p99.median / 1e3))
        where = f"{source.name}, {scenario}, {target}, {name}"
        yield Point(target, where, rate.median, p99.median, together, 1 if closed else 0)


def grid_of(known: Stored, target: str, length: int | None, model: str | None) -> Grid | None:
    """The runs at the least length that is long enough; the longest that was measured where none is."""
    made: dict[tuple[str, str], dict[int, Grid]] = {}
    for scenario in _GRIDS:
        for source in known.sources:
            for place, run in _runs(source, scenario, target):
                where = f"{source.name}, {scenario}, {target}, {_length_of(place)}{_MEAN * (scenario == _GRIDS[0])}"
                grids = made.setdefault((scenario, place.of), {})
                grids.setdefault(place.tokens, Grid(place.tokens, where, {})).runs.setdefault(place.batch, run)
    lengths = next((grids for (_, of), grids in made.items() if model in (None, of)), None)
    if not lengths:
        return None
    enough = [tokens for tokens in lengths if length is not None and tokens >= length]
    return lengths[min(enough, default=max(lengths))]


def _runs(source: Source, scenario: str, target: str) -> Iterator[tuple[Shape, tuple[float, float]]]:
    """Shape, and p50 and p99 of a run in ms; of `throughput` its mean for both."""
    for one in source.results.of(scenario):
        place = shape(one.point)
        if one.target != target or not place or not one.median > 0:
            continue
        if one.metric.endswith("p50_ms"):
            p99 = source.value(scenario, target, one.point, one.metric.replace("p50_ms", "p99_ms"))
            yield place, (one.median, p99.median if p99 else one.median)
        elif one.metric == "rows_per_s":
            mean = place.batch / one.median * 1e3
            yield place, (mean, mean)


def _length_of(place: Shape) -> str:
    return ", ".join(filter(None, (place.of, f"{place.tokens} tokens")))
