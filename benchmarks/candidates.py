"""What was measured of this worker, as points to choose from: loads that it served, and runs of its engine by batch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from benchmarks.report.stored import AUTO, Source, Stored
from benchmarks.rounds import REACHED, Shape, named_precision, plain, shape, without_engine
from engine.config import Settings

_LOADS = ("load", "peers")
_GRIDS = ("throughput", "latency")
"""The grid of the bundle itself goes before that of encoders with random weights."""

_OURS = "ours"
"""Without its engine and precision; others of us, as ours-web and ours-alone, are no settings of their own."""


def limit(env: str) -> int:
    """The most that a setting of the worker takes."""
    allowed = next(item.metadata["allowed"] for item in fields(Settings) if item.metadata["env"] == env)
    return int(allowed.rsplit(" ", 1)[1])


MOST_AT_ONCE, MOST_ROWS = limit("MAX_CONCURRENCY"), limit("MAX_BATCH_ROWS")


class Setting(NamedTuple):
    """What is chosen between; what commands measured of it has this in common, whatever they called it."""

    engine: str
    """AUTO where no file of a GPU's machine names the one that it was."""
    precision: str

    def __str__(self) -> str:
        return self.precision if self.engine == AUTO else f"{self.precision} on {self.engine}"


OPEN, CLOSED, ALONE = range(3)
"""Loops, and the engine alone."""


@dataclass(frozen=True)
class Point:
    """A target at a load, or at a shape of the grid where there is no load."""

    setting: Setting
    target: str
    where: str
    jobs_per_s: float
    p99_ms: float
    concurrency: int
    """Jobs that were under way at once, those that waited outside of the worker included."""
    order: int
    """OPEN, CLOSED or ALONE: the order in which they count."""
    taken: int = MOST_AT_ONCE
    """MAX_CONCURRENCY of the worker that was measured."""
    errors: int = 0
    """Jobs that failed."""
    jobs: int = 0
    """Jobs that were answered, as far as they were counted."""


@dataclass(frozen=True)
class Grid:
    """Runs of one target at one length, by batch."""

    target: str
    tokens: int
    where: str
    runs: dict[int, tuple[float, float]]
    """Batch -> p50 and p99 in ms."""
    too_large: set[int]
    """Batches that MAX_BATCH_ROWS does not take."""


def our_settings(known: Stored) -> list[Setting]:
    """This worker's engines and precisions, in the order of the files; not the one without a model."""
    found = _measured(known, (*_LOADS, *_GRIDS))
    return list(dict.fromkeys(setting_of(*where) for where in found))


def _measured(known: Stored, scenarios: Sequence[str]) -> list[tuple[Source, str, str]]:
    """Source, scenario and target of everything that is of a setting."""
    every = [(source, scenario) for source in known.sources for scenario in scenarios]
    found = [(source, scenario, target) for source, scenario in every for target in source.targets(scenario)]
    return [one for one in found if without_engine(plain(one[2])) == _OURS]


def setting_of(source: Source, scenario: str, target: str) -> Setting:
    """The engine, and the precision that `peers` saw served, whose names are its bundles'; else the name's."""
    found = source.results.environment.get("targets", {}).get(target, {}).get("precision")
    return Setting(source.engine(scenario, target), str(found or named_precision(target) or "fp32"))


def points_of(known: Stored, setting: Setting, length: int | None, model: str | None) -> Iterator[Point]:
    """Loads, the closed loops only where no open one counts; where there are none, the engine alone.

    Which of them count does not hang on the target: a stricter one would get a cheaper answer. Of the engine alone a
    job waits twice the p99.
    """
    loads = [
        point
        for scenario in _LOADS
        for source, target in _targets(known, scenario, setting)
        for point in _loads(source, scenario, setting, target)
    ]
    if loads:
        order = min((point.order for point in loads if not point.errors), default=None)
        yield from (point for point in loads if point.errors or point.order == order)
        return
    grid = grid_of(known, setting, length, model)
    for batch, (p50, p99) in (grid.runs if grid else {}).items():
        assert grid is not None
        where = f"{grid.where}, batch {batch}: the engine alone, without a worker around it; `load` of it would tell"
        yield Point(setting, grid.target, where, batch / p50 * 1e3, 2 * p99, 2 * batch, ALONE)


def _targets(known: Stored, scenario: str, setting: Setting) -> list[tuple[Source, str]]:
    found = _measured(known, (scenario,))
    return [(source, target) for source, _, target in found if setting_of(source, scenario, target) == setting]


def _loads(source: Source, scenario: str, setting: Setting, target: str) -> Iterator[Point]:
    names = dict.fromkeys(one.point for one in source.of(scenario) if one.target == target)
    loops = source.details(scenario, "open_loop") or []
    late = {
        loop["point"]
        for loop in loops
        if loop["target"] == target and sum(loop["reached_per_s"]) < REACHED * sum(loop["offered_per_s"])
    }
    counted = source.details(scenario, "counts") or []
    counts = {one["point"]: (sum(one["errors"]), sum(one["jobs"])) for one in counted if one["target"] == target}
    taken = int(source.options(scenario).get("concurrency") or Settings.max_concurrency)
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
        yield Point(
            setting,
            target,
            where,
            rate.median,
            p99.median,
            together,
            CLOSED if closed else OPEN,
            taken,
            *counts.get(name, ()),
        )


def grid_of(known: Stored, setting: Setting, length: int | None, model: str | None) -> Grid | None:
    """The runs at the least length that is long enough; the longest that was measured where none is."""
    made: dict[tuple[str, str], dict[int, Grid]] = {}
    for scenario in _GRIDS:
        for source, target in _targets(known, scenario, setting):
            for place, run in _runs(source, scenario, target):
                where = f"{source.name}, {scenario}, {target}, {_length_of(place)}"
                grids = made.setdefault((scenario, place.of), {})
                grid = grids.setdefault(place.tokens, Grid(target, place.tokens, where, {}, set()))
                if place.batch > MOST_ROWS:
                    grid.too_large.add(place.batch)
                else:
                    grid.runs.setdefault(place.batch, run)
    lengths = next((grids for (_, of), grids in made.items() if model in (None, of)), None)
    if not lengths:
        return None
    enough = [tokens for tokens in lengths if length is not None and tokens >= length]
    return lengths[min(enough, default=max(lengths))]


def _runs(source: Source, scenario: str, target: str) -> Iterator[tuple[Shape, tuple[float, float]]]:
    """Shape, and p50 and p99 of a run in ms, where it has both."""
    for one in source.of(scenario):
        place = shape(one.point)
        if one.target == target and place and one.metric == "p50_ms" and one.median > 0:
            p99 = source.value(scenario, target, one.point, "p99_ms")
            if p99 is not None:  # `latency` was asked for another percentile: nothing stands in for it
                yield place, (one.median, p99.median)


def _length_of(place: Shape) -> str:
    return ", ".join(filter(None, (place.of, f"{place.tokens} tokens")))
