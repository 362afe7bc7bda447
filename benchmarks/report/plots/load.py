"""Throughput against latency: what a job waits when so many are asked for, with the knee marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from benchmarks.measure import figure
from benchmarks.report import targets
from benchmarks.report.plot import INK, Absent, Canvas, Plot, logarithmic
from benchmarks.report.stored import Source, Stored
from benchmarks.rounds import plain

SCENARIO = "load"
_NAME, _TITLE = "load", "Throughput against latency"
_NOT_SERVED = ("ours-fake", "bare")
"""Workers without a model, which `load --engine fake` holds against each other."""
_LONG = 46  # letters of a legend's line, of which three have room side by side
_STYLES = (("o-", "s--"), ("^-.", "v:"), ("D-", "p--"), ("X-.", "P:"))


@dataclass(frozen=True)
class Point:
    """One loop, closed or open."""

    name: str
    jobs_per_s: float
    """Reached."""
    p50_ms: float
    p99_ms: float

    @property
    def closed(self) -> bool:
        """Clients that wait for their answer before they send again."""
        return "client" in self.name


@dataclass(frozen=True)
class Curve:
    """The loops of one target of one file."""

    source: Source
    target: str
    label: str
    points: Sequence[Point]
    knee: str | None
    """The name of the point up to which latency grows little."""
    style: tuple[str, str]
    """Marker and line of p99, and of p50: no two curves of one colour have the same."""

    @property
    def closed(self) -> list[Point]:
        """The closed loops, by clients."""
        return sorted((one for one in self.points if one.closed), key=lambda one: int(one.name.split()[0]))

    @property
    def open(self) -> list[Point]:
        """The open loops, by what they reached."""
        return sorted((one for one in self.points if not one.closed), key=lambda one: one.jobs_per_s)


def curves(known: Stored) -> list[Curve]:
    """What there is of `load`."""
    made: list[Curve] = []
    for source in known.having(SCENARIO):
        for target in (name for name in source.targets(SCENARIO) if plain(name) not in _NOT_SERVED):
            points = [point for name in _names(source, target) if (point := _point(source, target, name))]
            if not points:
                continue
            knee = source.details(SCENARIO, "knee")
            found = knee["point"] if knee and any(one.name == knee["point"] for one in points) else None
            label = targets.name(target) + known.apart(source, SCENARIO)
            same = sum(targets.colour(one.target) == targets.colour(target) for one in made)
            made.append(Curve(source, target, label, points, found, _STYLES[same % len(_STYLES)]))
    return made


def _names(source: Source, target: str) -> list[str]:
    names = (one.point for one in source.of(SCENARIO) if one.target == target)
    return [name for name in dict.fromkeys(names) if re.fullmatch(r"\d+ clients?|rate .*", name)]


def _point(source: Source, target: str, name: str) -> Point | None:
    found = [source.value(SCENARIO, target, name, metric) for metric in ("jobs_per_s", "p50_ms", "p99_ms")]
    values = [one.median for one in found if one is not None]
    return Point(name, *values) if len(values) == len(found) else None


def plot(known: Stored) -> Plot | Absent:
    """See the top."""
    found = curves(known)
    if not found:
        return Absent(_NAME, _TITLE, "python -m benchmarks load --json benchmarks/results/load-cpu.json")
    rows = [
        [curve.label, _said(point.name), *(figure(one) for one in (point.jobs_per_s, point.p50_ms, point.p99_ms)),
         "knee" if point.name == curve.knee else ""]
        for curve in found for point in (*curve.closed, *curve.open)
    ]  # fmt: skip
    return Plot(
        _NAME,
        _TITLE,
        "Right is more jobs a second, down is sooner answered. Left: so many clients that each wait for their answer. "
        "Right: jobs that arrive at random whatever the worker does; up to the knee p99 grows little, beyond it the "
        "queue does.",
        "; ".join(_summary(curve) for curve in found) + ".",
        ("", "load", "jobs/s", "p50 ms", "p99 ms", ""),
        rows,
        lambda canvas: _draw(canvas, found),
        known.credits(SCENARIO),
    )


def _said(name: str) -> str:
    found = re.fullmatch(r"rate ([\d.]+)", name)
    return f"open loop at {float(found[1]):.0%} of the best closed loop" if found else name.replace("rate", "open loop")


def _summary(curve: Curve) -> str:
    best = max(curve.points, key=lambda one: one.jobs_per_s)
    text = f"{curve.label}: at most {figure(best.jobs_per_s, 'jobs/s')} with p99 {figure(best.p99_ms, 'ms')}"
    knee = next((one for one in curve.points if one.name == curve.knee), None)
    return text + (
        f", knee at {figure(knee.jobs_per_s, 'jobs/s')} with p99 {figure(knee.p99_ms, 'ms')}" if knee else ""
    )


def _draw(canvas: Canvas, found: Sequence[Curve]) -> None:
    """A panel for closed loops and one for open ones; one that has no points is left out."""
    panels = {
        "closed loop: clients that wait": [(curve, curve.closed) for curve in found if curve.closed],
        "open loop: random arrivals": [(curve, curve.open) for curve in found if curve.open],
    }
    drawn = {title: curves for title, curves in panels.items() if curves}
    every = canvas.axes(2.7 if canvas.narrow else 3.5, count=len(drawn), columns=2)
    shown = [point for curves in drawn.values() for _, points in curves for point in points]
    low, top = min(point.p50_ms for point in shown) / 1.4, max(point.p99_ms for point in shown) * 1.6
    right = max(point.jobs_per_s for point in shown) * 1.15
    for axes, (title, curves) in zip(every, drawn.items(), strict=True):
        for curve, points in curves:
            _lines(axes, curve, points)
            _notes(axes, curve, points)
        axes.set_title(title)
        axes.set_xlabel("jobs/s reached")
        axes.set_ylabel("ms")
        axes.set_yscale("log")
        logarithmic(axes.yaxis)
        axes.set_ylim(low, top)
        axes.set_xlim(0, right)
    handles, labels = every[-1].get_legend_handles_labels()
    columns = 1 if canvas.narrow else 3 if max(map(len, labels)) < _LONG else 2
    told = [label.replace(" (", "\n(") if canvas.narrow and len(label) >= _LONG else label for label in labels]
    canvas.figure.legend(handles, told, loc="outside upper center", ncols=columns)


def _lines(axes: Axes, curve: Curve, points: Sequence[Point]) -> None:
    rates = [one.jobs_per_s for one in points]
    colour = targets.colour(curve.target).light
    p99, p50 = curve.style
    axes.plot(rates, [one.p99_ms for one in points], p99, color=colour, label=f"{curve.label}, p99")
    axes.plot(rates, [one.p50_ms for one in points], p50, color=colour, alpha=0.75, label=f"{curve.label}, p50")


def _notes(axes: Axes, curve: Curve, points: Sequence[Point]) -> None:
    for point in points:
        text = point.name if point.closed else f"knee, {figure(point.jobs_per_s)} jobs/s"
        if not point.closed and point.name != curve.knee:
            continue
        if not point.closed:
            axes.plot(point.jobs_per_s, point.p99_ms, "o", color=INK.light, markersize=12, fillstyle="none")
        axes.annotate(
            text, (point.jobs_per_s, point.p99_ms), (-9, 4), textcoords="offset points", ha="right", color=INK.light
        )
