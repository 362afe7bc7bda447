"""Precision against accuracy: how far each precision is from PyTorch in fp32, and how fast it is beside ours in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measure import figure, times
from benchmarks.report import targets
from benchmarks.report.compared import SCENARIO as PEERS
from benchmarks.report.compared import chosen, compare
from benchmarks.report.plot import INK, Absent, Canvas, Plot
from benchmarks.report.stored import Source, Stored

SCENARIO = "accuracy"
_NAME, _TITLE = "accuracy", "Precision against accuracy"
_LEAST = 1e-8  # of what float32 can tell apart: a cosine that rounds to 1


@dataclass(frozen=True)
class Loss:
    """How far a precision is from the reference."""

    source: Source
    target: str
    point: str
    metric: str
    loss: float
    """1 - cosine, or the difference, or 1 - agreement: 0 is equal."""
    value: float
    """The metric as it was measured."""


def losses(known: Stored) -> list[Loss]:
    """A loss for each target and point; of several metrics the worst cosine, or else the first that can be a loss."""
    made: dict[tuple[str, str, str], Loss] = {}
    for source in known.having(SCENARIO):
        found = sorted(source.results.of(SCENARIO), key=lambda one: _rank(one.metric))
        for one in found:
            key = source.name, one.target, one.point
            if key in made or one.median != one.median or one.unit in ("s", "ms", "us", "MB", "jobs/s", "rows/s"):
                continue
            loss = 1 - one.median if one.better == "higher" else one.median
            made[key] = Loss(source, one.target, one.point, one.metric, max(0.0, loss), one.median)
    return list(made.values())


def _rank(metric: str) -> int:
    order = ("cosine_min", "worst_cosine", "cosine_worst", "cosine", "agreement", "difference")
    return next((place for place, name in enumerate(order) if name in metric), len(order))


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
        "difference); behind each dot is how fast that precision is beside this worker in fp32.",
        f"The farthest is {_label(worst)}: {worst.metric} {worst.value:.7g}.",
        ("", "metric", "value", "loss", "32 clients beside fp32"),
        [[_label(one), one.metric, f"{one.value:.7g}", f"{one.loss:.1e}", speeds[one.target] or "-"] for one in found],
        lambda canvas: _draw(canvas, found, speeds),
        ", ".join(f"{source.name}, {source.machine}" for source in known.having(SCENARIO)),
    )


def _label(one: Loss) -> str:
    return f"{targets.name(one.target)}, {one.point}" if one.point else targets.name(one.target)


def _speed(known: Stored, target: str) -> str | None:
    """Jobs a second of 32 clients as a multiple of ours in fp32."""
    source = chosen(known)
    if source is None or not target.startswith("ours"):
        return None
    mine, base = (source.value(PEERS, name, "32 clients", "jobs_per_s") for name in (target, "ours"))
    compared = compare(mine, base) if mine else None
    return times(compared.ratio) if compared else None


def _draw(canvas: Canvas, found: Sequence[Loss], speeds: dict[str, str | None]) -> None:
    (axes,) = canvas.axes(0.9 + (0.45 if canvas.narrow else 0.34) * len(found))
    for place, one in enumerate(found):
        at = max(one.loss, _LEAST)
        axes.plot([_LEAST / 3, at], [place, place], color=targets.colour(one.target).light, linewidth=1.2)
        axes.plot(at, place, "o", color=targets.colour(one.target).light, markersize=8)
        speed = speeds[one.target]
        text = f"{one.loss:.0e}" + (f", {speed} the speed" if speed else "")
        axes.annotate(text, (at, place), (8, 0), textcoords="offset points", va="center", color=INK.light)
    axes.set_xscale("log")
    axes.set_xlim(_LEAST / 3, max(1e-3, *(one.loss for one in found)) * (3000 if canvas.narrow else 200))
    axes.set_yticks(range(len(found)), [_label(one).replace(", ", ",\n" if canvas.narrow else ", ") for one in found])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.minorticks_off()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("distance from PyTorch in fp32")
