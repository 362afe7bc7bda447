"""The cold-start budget: what a start spends its time on, stage by stage, beside the least that any process must do."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure import figure
from benchmarks.report import targets
from benchmarks.report.details import details
from benchmarks.report.plot import INK, PAPER, SOFT, Absent, Canvas, Plot
from benchmarks.report.stored import Stored

SCENARIO = "coldstart"
_NAME, _TITLE = "coldstart", "What a cold start spends its time on"
_MOMENTS = (("first_take_s", "first job asked for"), ("ready_s", "ready"), ("first_answer_s", "first answer"))
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
        ", ".join(f"{source.name}, {source.machine}" for source in known.having(SCENARIO)),
    )


def _said(start: _Start) -> str:
    longest = max(start.stages, key=lambda stage: start.stages[stage])
    moments = [f"{moment} after {figure(ms, 'ms')}" for moment, ms in start.moments.items()]
    return ", ".join([*moments, f"longest stage {longest} with {figure(start.stages[longest], 'ms')}"])


def _starts(known: Stored) -> list[_Start]:
    made = []
    for source in known.having(SCENARIO):
        by_target = details(source.results, SCENARIO, "stages") or {}
        for target in sorted(by_target, key=lambda name: name == "floor"):
            for cache, stages in by_target[target].items():
                if not stages:
                    continue
                found = ((name, source.value(SCENARIO, target, cache, metric)) for metric, name in _MOMENTS)
                where = "" if len(known.having(SCENARIO)) == 1 else f" ({source.name})"
                label = f"{targets.name(target).partition(':')[0]}, page cache {cache}{where}"
                moments = {name: one.median * 1e3 for name, one in found if one}
                made.append(_Start(label, targets.colour(target).light, _medians(stages), moments))
    return made


def _medians(stages: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {stage: statistics.median(values) for stage, values in stages.items() if values}


def _draw(canvas: Canvas, starts: Sequence[_Start], stages: Sequence[str]) -> None:
    legend = -(-len(stages) // (2 if canvas.narrow else 5))
    (axes,) = canvas.axes(1.1 + 0.2 * legend + (0.62 if canvas.narrow else 0.46) * len(starts))
    longest = max(max(sum(start.stages.values()), *start.moments.values()) for start in starts)
    colours = {stage: targets.STAGES[place % len(targets.STAGES)].light for place, stage in enumerate(stages)}
    for place, start in enumerate(starts):
        begin = 0.0
        for stage, ms in start.stages.items():
            axes.barh(place, ms, left=begin, height=0.55, color=colours[stage], edgecolor=PAPER.light, linewidth=0.8)
            if ms > _LABELLED * longest and not canvas.narrow:
                axes.text(begin + ms / 2, place, f"{ms:.0f}", ha="center", va="center", color=PAPER.light)
            begin += ms
        for (_, moment), marker in zip(_MOMENTS, ("D", "|", "v"), strict=True):
            if moment in start.moments:
                axes.plot(start.moments[moment], place - 0.42, marker, color=INK.light, markersize=5, clip_on=False)
    axes.set_yticks(range(len(starts)), [_wrapped(start.label, canvas.narrow) for start in starts])
    axes.set_ylim(len(starts) - 0.5, -0.75)
    axes.set_xlim(0, longest * 1.03)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ms since exec")
    handles = [axes.barh(0, 0, color=colours[stage], label=stage) for stage in stages]
    used = [moment for _, moment in _MOMENTS if any(moment in start.moments for start in starts)]
    for (_, moment), marker in zip(_MOMENTS, ("D", "|", "v"), strict=True):
        if moment in used:
            axes.plot([], [], marker, color=INK.light, markersize=5, label=moment)
    assert handles, "there are stages"
    canvas.figure.legend(
        loc="outside upper center", ncols=2 if canvas.narrow else 5, labelcolor=SOFT.light, handlelength=1.0,
        columnspacing=1.2,
    )  # fmt: skip


def _wrapped(label: str, narrow: bool) -> str:
    return label.replace(", page cache ", ",\n" if narrow else ", ")
