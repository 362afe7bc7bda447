"""The cold-start budget: what a start spends its time on, stage by stage, beside the least that any process must do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from benchmarks.measure import figure
from benchmarks.report import targets
from benchmarks.report.plot import INK, PAPER, SOFT, Absent, Canvas, Plot, bars_inches, wrapped
from benchmarks.report.stored import Stored

SCENARIO = "coldstart"
_NAME, _TITLE = "coldstart", "What a cold start spends its time on"
_MOMENTS = (("first_take_s", "first job asked for"), ("ready_s", "ready"), ("first_answer_s", "first answer"))
_MARKERS = dict(zip(dict(_MOMENTS).values(), "D|v", strict=True))
_LABELLED = 0.06  # of the longest bar: a stage that is shorter has no room for its name


@dataclass(frozen=True)
class _Start:
    """One bar."""

    label: str
    colour: str
    stages: Mapping[str, float]
    """Stage -> ms, median of the runs."""
    moments: Mapping[str, float]
    """Moment -> ms since exec."""


def plot(known: Stored) -> Plot | Absent:
    """See the top."""
    starts = _starts(known)
    if not starts:
        return Absent(_NAME, _TITLE, "python -m benchmarks coldstart --json benchmarks/results/coldstart-cpu.json")
    stages = list(dict.fromkeys(stage for start in starts for stage in start.stages))
    moments = [moment for moment in dict(_MOMENTS).values() if any(moment in start.moments for start in starts)]
    rows = [
        [start.label, *map(figure, [*map(start.stages.get, stages), *map(start.moments.get, moments)])]
        for start in starts
    ]
    return Plot(
        _NAME,
        _TITLE,
        "Stages are stacked in order, in ms; the marks are moments since exec. A bar that ends beyond its last mark "
        "had stages that ran side by side; one that ends before it spent the rest between stages.",
        "; ".join(f"{start.label}: {_said(start)}" for start in starts) + ".",
        ("ms", *stages, *moments),
        rows,
        lambda canvas: _draw(canvas, starts, stages),
        known.credits(SCENARIO),
    )


def _said(start: _Start) -> str:
    longest = max(start.stages, key=lambda stage: start.stages[stage])
    moments = [f"{moment} after {figure(ms, 'ms')}" for moment, ms in start.moments.items()]
    return ", ".join([*moments, f"longest stage {longest} with {figure(start.stages[longest], 'ms')}"])


def _starts(known: Stored) -> list[_Start]:
    made = []
    for source in known.having(SCENARIO):
        by_target = source.details(SCENARIO, "stages") or {}
        for target in sorted(by_target, key=lambda name: name == "floor"):
            for cache, stages in by_target[target].items():
                if not stages or not source.speaks_for(SCENARIO, target, cache):
                    continue
                found = ((name, source.value(SCENARIO, target, cache, metric)) for metric, name in _MOMENTS)
                label = f"{targets.name(target).partition(':')[0]}, page cache {cache}{known.apart(source, SCENARIO)}"
                moments = {name: one.median * 1e3 for name, one in found if one}
                made.append(_Start(label, targets.colour(target).light, _medians(stages), moments))
    return made


def _medians(stages: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {stage: statistics.median(values) for stage, values in stages.items() if values}


def _draw(canvas: Canvas, starts: Sequence[_Start], stages: Sequence[str]) -> None:
    columns = 2 if canvas.narrow else 5
    legend = 0.2 * -(-len(stages) // columns)
    labels = [_shorter(start.label, canvas.narrow) for start in starts]
    (axes,) = canvas.axes(1.1 + legend + bars_inches(labels, 0.62 if canvas.narrow else 0.46))
    longest = max(max([sum(start.stages.values()), *start.moments.values()]) for start in starts)
    colours = {stage: targets.STAGES[place % len(targets.STAGES)].light for place, stage in enumerate(stages)}
    for place, start in enumerate(starts):
        _bar(axes, place, start, colours, _LABELLED * longest if not canvas.narrow else math.inf)
    axes.set_yticks(range(len(starts)), labels)
    axes.set_ylim(len(starts) - 0.5, -0.75)
    axes.set_xlim(0, longest * 1.03)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ms since exec")
    for stage in stages:
        axes.barh(0, 0, color=colours[stage], label=stage)
    for moment in dict.fromkeys(moment for start in starts for moment in start.moments):
        axes.plot([], [], _MARKERS[moment], color=INK.light, markersize=5, label=moment)
    canvas.figure.legend(
        loc="outside upper center", ncols=columns, labelcolor=SOFT.light, handlelength=1.0, columnspacing=1.2
    )


def _bar(axes: Axes, place: int, start: _Start, colours: Mapping[str, str], labelled_ms: float) -> None:
    """The stages one behind the other, those from `labelled_ms` up with their figure; the moments above them."""
    begin = 0.0
    for stage, ms in start.stages.items():
        axes.barh(place, ms, left=begin, height=0.55, color=colours[stage], edgecolor=PAPER.light, linewidth=0.8)
        if ms > labelled_ms:
            axes.text(begin + ms / 2, place, f"{ms:.0f}", ha="center", va="center", color=PAPER.light)
        begin += ms
    for moment, ms in start.moments.items():
        axes.plot(ms, place - 0.42, _MARKERS[moment], color=INK.light, markersize=5, clip_on=False)


def _shorter(label: str, narrow: bool) -> str:
    return wrapped(label.replace(", page cache ", ", "), narrow=narrow)
