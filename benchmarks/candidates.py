"""What was measured of this worker, as points to choose from: loads that it served, and runs of its engine by batch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.report.stored import Shape, Source, Stored, shape
from benchmarks.rounds import REACHED, named_precision, plain

_LOADS = ("load", "peers")
_GRIDS = ("throughput", "latency")
"""The grid of the bundle itself goes before that of encoders with random weights."""
_MEAN = " (mean times, which a p99 is above)"

_NO_SETTING = ("ours-fake", "ours-http", "ours-web", "ours-alone", "ours-handler")
"""Of us as well, but no engine and precision of their own."""


class Setting(NamedTuple):
    """What is chosen between; what commands measured of it has this in common, whatever they called it."""

    name: str
    """Of the target, without its precision: ours, ours-tensorrt."""
    precision: str


@dataclass(frozen=True)
class Point:
    """A target at a load, or at a shape of the grid where there is no load."""

    setting: Setting
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

    target: str
    tokens: int
    where: str
    runs: dict[int, tuple[float, float]]
    """Batch -> p50 and p99 in ms."""


def our_settings(known: Stored) -> list[Setting]:
    """This worker's engines and precisions, in the order of the files; not the one without a model."""
    scenarios = [(source, scenario) for source in known.sources for scenario in (*_LOADS, *_GRIDS)]
    found = [setting_of(source, target) for source, scenario in scenarios for target in source.targets(scenario)]
    return [one for one in dict.fromkeys(found) if one.name.split("-")[0] == "ours" and one.name not in _NO_SETTING]


def setting_of(source: Source, target: str) -> Setting:
    """By what `peers` saw served, whose names are its bundles'; else by the target's name, "ours" being fp32.

    Files of `latency` from when it called every precision "ours" say it in their options.
    """
    found = source.results.environment.get("targets", {}).get(target, {}).get("precision")
    named = named_precision(target) or source.results.options.get("precision")
    return Setting(plain(target), str(found or named or "fp32"))


def points_of(known: Stored, setting: Setting, length: int | None, model: str | None) -> Iterator[Point]:
    """Loads; where there are none, the engine alone, twice whose p99 a job waits."""
    loads = [
        point
        for scenario in _LOADS
        for source, target in _targets(known, scenario, setting)
        for point in _loads(source, scenario, setting, target)
    ]
    if loads:
        yield from loads
        return
    grid = grid_of(known, setting, length, model)
    for batch, (p50, p99) in (grid.runs if grid else {}).items():
        assert grid is not None
        where = f"{grid.where}, batch {batch}: the engine alone, without a worker around it; `load` of it would tell"
        yield Point(setting, grid.target, where, batch / p50 * 1e3, 2 * p99, 2 * batch, 2)


def _targets(known: Stored, scenario: str, setting: Setting) -> list[tuple[Source, str]]:
    found = [(source, target) for source in known.sources for target in source.targets(scenario)]
    return [(source, target) for source, target in found if setting_of(source, target) == setting]


def _loads(source: Source, scenario: str, setting: Setting, target: str) -> Iterator[Point]:
    names = dict.fromkeys(one.point for one in source.results.of(scenario) if one.target == target)
    details = source.results.details
    loops = (details.get(scenario) or details).get("open_loop") or []  # of several scenarios, by each one's name
    late = {
        loop["point"]
        for loop in loops
        if loop["target"] == target and sum(loop["reached_per_s"]) < REACHED * sum(loop["offered_per_s"])
    }
    for name in names:
        closed = re.fullmatch(r"(\d+) clients?", name)
        if not closed and not name.startswith("rate "):
            continue
        rate, p99 = (source.value(scenario, target, name, metric) for metric in ("jobs_per_s", "p99_ms"))
        if rate is None or p99 is None or not rate.median > 0:  # a loop without answers serves nothing
            continue
        if name in late:  # its p99 tells how long the loop lasted
            continue
        together = int(closed[1]) if closed else max(1, math.ceil(rate.median * p99.median / 1e3))
        where = f"{source.name}, {scenario}, {target}, {name}"
        yield Point(setting, target, where, rate.median, p99.median, together, 1 if closed else 0)


def grid_of(known: Stored, setting: Setting, length: int | None, model: str | None) -> Grid | None:
    """The runs at the least length that is long enough; the longest that was measured where none is."""
    made: dict[tuple[str, str], dict[int, Grid]] = {}
    for scenario in _GRIDS:
        for source, target in _targets(known, scenario, setting):
            for place, run in _runs(source, scenario, target):
                where = f"{source.name}, {scenario}, {target}, {_length_of(place)}{_MEAN * (scenario == _GRIDS[0])}"
                grids = made.setdefault((scenario, place.of), {})
                grids.setdefault(place.tokens, Grid(target, place.tokens, where, {})).runs.setdefault(place.batch, run)
    lengths = next((grids for (_, of), grids in made.items() if model in (None, of)), None)
    if not lengths:
        return None
    enough = [tokens for tokens in lengths if length is not None and tokens >= length]
    return lengths[min(enough, default=max(lengths))]


def _runs(source: Source, scenario: str, target: str) -> Iterator[tuple[Shape, tuple[float, float]]]:
    """Shape, and p50 and p99 of a run in ms, where it has both; of `throughput` its mean for both."""
    for one in source.results.of(scenario):
        place = shape(one.point)
        if one.target != target or not place or not one.median > 0:
            continue
        if one.metric.endswith("p50_ms"):
            p99 = source.value(scenario, target, one.point, one.metric.replace("p50_ms", "p99_ms"))
            if p99 is not None:  # `latency` was asked for another percentile: nothing stands in for it
                yield place, (one.median, p99.median)
        elif one.metric == "rows_per_s":
            mean = place.batch / one.median * 1e3
            yield place, (mean, mean)


def _length_of(place: Shape) -> str:
    return ", ".join(filter(None, (place.of, f"{place.tokens} tokens")))
