"""Padding waste: of the tokens that the engine computes, the share that no text has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measure import figure
from benchmarks.report import targets
from benchmarks.report.plot import INK, Absent, Canvas, Plot, bars_inches, wrapped
from benchmarks.report.stored import Stored

SCENARIO = "batching"
_NAME, _TITLE = "padding", "Padding waste"


@dataclass(frozen=True)
class _Waste:
    label: str
    target: str
    percent: float


def plot(known: Stored) -> Plot | Absent:
    """See the top."""
    found = _found(known)
    if not found:
        return Absent(_NAME, _TITLE, "python -m benchmarks batching --json benchmarks/results/batching-cpu.json")
    worst = max(found, key=lambda one: one.percent)
    return Plot(
        _NAME,
        _TITLE,
        "A bar is the share of all computed tokens that is padding: time that no answer needed. Sorting by length and "
        "a finer ladder make it shorter.",
        f"From {figure(min(one.percent for one in found))}% to {figure(worst.percent)}%, the most at {worst.label}.",
        ("", "padding"),
        [[one.label, f"{figure(one.percent)}%"] for one in found],
        lambda canvas: _draw(canvas, found),
        known.credits(SCENARIO),
    )


def _found(known: Stored) -> list[_Waste]:
    """`padding` is tokens computed as a multiple of those of the texts: 1.25 is a fifth of padding."""
    made = []
    for source in known.having(SCENARIO):
        counted = (one for one in source.of(SCENARIO) if one.metric == "padding" and one.median >= 1)
        where = known.apart(source, SCENARIO)
        made += [
            _Waste(f"{targets.name(one.target)}, {one.point}{where}", one.target, 100 * (1 - 1 / one.median))
            for one in counted
        ]
    return made


def _draw(canvas: Canvas, found: Sequence[_Waste]) -> None:
    labels = [wrapped(one.label, narrow=canvas.narrow) for one in found]
    (axes,) = canvas.axes(0.8 + bars_inches(labels, 0.3))
    for place, one in enumerate(found):
        axes.barh(place, one.percent, height=0.6, color=targets.colour(one.target).light)
        axes.annotate(
            f"{one.percent:.0f}%",
            (one.percent, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            color=INK.light,
        )
    axes.set_yticks(range(len(found)), labels)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlim(0, max(10.0, *(one.percent for one in found)) * 1.15)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("% of the tokens computed")
