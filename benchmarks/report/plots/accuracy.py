"""Precision against accuracy: how far each precision is from PyTorch in fp32, and how fast beside ours in fp32."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure import times
from benchmarks.report import targets
from benchmarks.report.compared import SCENARIO as PEERS
from benchmarks.report.compared import chosen, compare
from benchmarks.report.losses import SCENARIO, Loss, losses
from benchmarks.report.plot import INK, Absent, Canvas, Plot
from benchmarks.report.stored import Stored

_NAME, _TITLE = "accuracy", "Precision against accuracy"
_LEAST = 1e-8  # of what float32 can tell apart: a cosine that rounds to 1


def plot(known: Stored) -> Plot | Absent:
    """See the top."""
    found = losses(known)
    if not found:
        return Absent(_NAME, _TITLE, "python -m benchmarks accuracy --json benchmarks/results/accuracy-cpu.json")
    speeds = {one.target: _speed(known, one.target) for one in found}
    worst = max(found, key=lambda one: one.loss)
    return Plot(
        _NAME,
        _TITLE,
        "Left is nearer to PyTorch in fp32, on a logarithmic axis (one minus the worst cosine, or the largest "
        "difference); above each line is how fast that precision is beside this worker in fp32.",
        f"The farthest is {_label(worst)}: {worst.metric} {worst.value:.7g}.",
        ("", "metric", "value", "loss", "32 clients beside fp32"),
        [[_label(one), one.metric, f"{one.value:.7g}", f"{one.loss:.1e}", speeds[one.target] or "-"] for one in found],
        lambda canvas: _draw(canvas, found, speeds),
        ", ".join(f"{source.name}, {source.machine}" for source in known.having(SCENARIO)),
    )


def _label(one: Loss) -> str:
    """The point is said where the target does not say it."""
    name = targets.name(one.target)
    return name if not one.point or one.point in name.split(", ") else f"{name}, {one.point}"


def _speed(known: Stored, target: str) -> str | None:
    """Jobs a second of 32 clients as a multiple of ours in fp32."""
    source = chosen(known)
    if source is None or not target.startswith("ours"):
        return None
    mine, base = (source.value(PEERS, name, "32 clients", "jobs_per_s") for name in (target, "ours"))
    compared = compare(mine, base) if mine else None
    return times(compared.ratio) if compared else None


def _draw(canvas: Canvas, found: Sequence[Loss], speeds: dict[str, str | None]) -> None:
    (axes,) = canvas.axes(0.9 + 0.5 * len(found))
    left = _LEAST / 3
    for place, one in enumerate(found):
        at, colour = max(one.loss, _LEAST), targets.colour(one.target).light
        axes.plot([left, at], [place, place], color=colour, linewidth=1.4)
        axes.plot(at, place, "o", color=colour, markersize=8)
        speed = speeds[one.target]
        text = f"{one.loss:.1e}" + (f", {speed} the speed of fp32" if speed else "")
        axes.annotate(text, (left, place), (6, 5), textcoords="offset points", color=INK.light)
    axes.set_xscale("log")
    axes.set_xlim(left, 3 * max(1e-2, *(one.loss for one in found)))
    axes.set_yticks(range(len(found)), [_label(one).replace(", ", ",\n" if canvas.narrow else ", ") for one in found])
    axes.set_ylim(len(found) - 0.5, -0.75)
    axes.minorticks_off()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("distance from PyTorch in fp32")
