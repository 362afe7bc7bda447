"""Precision against accuracy: how far each precision is from fp32, and how much faster."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure import MISSING, figure, times
from benchmarks.report import targets
from benchmarks.report.losses import SCENARIO, Loss, losses
from benchmarks.report.plot import INK, Absent, Canvas, Plot, bars_inches, wrapped
from benchmarks.report.stored import Stored

_NAME, _TITLE = "accuracy", "Precision against accuracy"
_LEAST = 1e-8  # about what float32 can tell apart: a cosine that rounds to 1


def plot(known: Stored) -> Plot | Absent:
    """See the top."""
    found = losses(known.having(SCENARIO))
    names = [_name(one, known) for one in found]
    if not found:
        return Absent(_NAME, _TITLE, "python -m benchmarks accuracy --json benchmarks/results/accuracy-cpu.json")
    worst = max(found, key=lambda one: one.loss)
    return Plot(
        _NAME,
        _TITLE,
        "Left is nearer to fp32, on a logarithmic axis: one minus the cosine of the worst text. Above each line is how "
        "many rows a second the engine runs, beside fp32 in the same rounds.",
        f"The farthest is {_name(worst, known)}: its worst cosine is {worst.cosine:.7g}.",
        ("", "worst cosine", "loss", "rows/s", "beside fp32", "of"),
        [
            [name, f"{one.cosine:.7g}", f"{one.loss:.1e}", _rate(one), times(one.speed), one.point]
            for name, one in zip(names, found, strict=True)
        ],
        lambda canvas: _draw(canvas, found, names),
        known.credits(SCENARIO),
    )


def _name(one: Loss, known: Stored) -> str:
    name = "this worker, fp32" if one.target == "ours" else targets.name(one.target)
    return name + known.apart(one.source, SCENARIO)


def _rate(one: Loss) -> str:
    return figure(one.rate.median) if one.rate else MISSING


def _draw(canvas: Canvas, found: Sequence[Loss], names: Sequence[str]) -> None:
    labels = [wrapped(name, narrow=canvas.narrow) for name in names]
    (axes,) = canvas.axes(0.9 + bars_inches(labels, 0.5))
    left = _LEAST / 3
    for place, one in enumerate(found):
        at, colour = max(one.loss, _LEAST), targets.colour(one.target).light
        axes.plot([left, at], [place, place], color=colour, linewidth=1.4)
        axes.plot(at, place, "o", color=colour, markersize=8)
        parts = ["the reference" if one.target == "ours" else f"{one.loss:.1e}"]
        parts += [f"{_rate(one)} rows/s"] if one.rate else []
        parts += [times(one.speed)] if one.speed and one.target != "ours" else []
        axes.annotate(", ".join(parts), (left, place), (6, 7), textcoords="offset points", color=INK.light)
    axes.set_xscale("log")
    axes.set_xlim(left, 3 * max(1e-2, *(one.loss for one in found)))
    axes.set_yticks(range(len(found)), labels)
    axes.set_ylim(len(found) - 0.5, -0.75)
    axes.minorticks_off()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("distance from fp32")
