"""Latency by batch: the median as a line, up to the 99th percentile as a band.

Of `latency`, whose encoders have random weights, and of `throughput`, which runs a bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from benchmarks.measure import figure
from benchmarks.report import targets
from benchmarks.report.plot import Absent, Canvas, Plot, logarithmic
from benchmarks.report.stored import Source, Stored
from benchmarks.rounds import Shape, named_precision, plain, shape

SCENARIO, _OF_A_BUNDLE = "latency", "throughput"
_NAME, _TITLE = "latency", "Latency by batch"
_PANELS = 6
"""At most so many shapes are drawn, the rest is in the table."""
_MARKERS, _LINES = "os^Dvp", ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Row:
    """One target at one shape."""

    source: Source
    target: str
    shape: Shape
    p50_ms: float
    p99_ms: float | None
    """None where another percentile was asked for."""
    where: tuple[str, ...] = ()
    """Machine and engine, where there are several."""

    @property
    def label(self) -> str:
        """Who it is, in a legend."""
        if plain(self.target) != "ours":
            return targets.name(self.target)
        return ", ".join(filter(None, ["this worker's engine, with copies", named_precision(self.target)]))


def latency_rows(known: Stored, scenarios: Sequence[str] = (SCENARIO,)) -> list[Row]:
    """All that was measured at a shape, with its median."""
    made = []
    found = [(scenario, source) for scenario in scenarios for source in known.having(scenario)]
    machines = {source.machine for _, source in found}
    for scenario, source in found:
        where = tuple(known.differing(source, scenario, by_file=False))
        if len(machines) > 1 and source.machine not in where:  # it is the scenario's only one
            where = (source.machine, *where)
        for one in source.of(scenario):
            place = shape(one.point)
            if place and one.metric == "p50_ms" and one.median == one.median:
                if scenario == _OF_A_BUNDLE:
                    place = place._replace(of=_bundle(source))
                above = source.value(scenario, one.target, one.point, "p99_ms")
                made.append(Row(source, one.target, place, one.median, above.median if above else None, where))
    return made


def _bundle(source: Source) -> str:
    model = str(source.options(_OF_A_BUNDLE).get("model") or "")
    return f"bundle of {model.rpartition('/')[2]}" if model else "bundle"


def plot(known: Stored) -> Plot | Absent:
    """See the top."""
    scenarios = SCENARIO, _OF_A_BUNDLE
    found = latency_rows(known, scenarios)
    if not found:
        return Absent(_NAME, _TITLE, "python -m benchmarks latency --json benchmarks/results/latency-cpu.json")
    panels = _panels(found)
    fastest = min(found, key=lambda row: row.p50_ms / row.shape.batch)
    left_out = len(panels) - _PANELS
    return Plot(
        _NAME,
        _TITLE,
        "A line is the median time of a run of so many rows, its band reaches up to the 99th percentile: a wide band "
        "is latency that cannot be relied on; where a line bends upwards, a larger batch brings no more rows a second."
        + (f" The table has {left_out} more shapes." if left_out > 0 else ""),
        f"{len(found)} shapes; the most rows a second has {fastest.label} at {_said(fastest.shape)}: "
        f"{figure(fastest.p50_ms, 'ms')} for {fastest.shape.batch} rows.",
        ("model", "tokens", "batch", "", "p50 ms", "p99 ms", "rows/s"),
        [
            [row.shape.of or "-", str(row.shape.tokens or "-"), str(row.shape.batch),
             row.label + (f" ({', '.join(row.where)})" if row.where else ""), figure(row.p50_ms),
             figure(row.p99_ms), figure(row.shape.batch / row.p50_ms * 1e3)]
            for row in found
        ],
        lambda canvas: _draw(canvas, panels[:_PANELS]),
        "; ".join(filter(None, map(known.credits, scenarios))),
    )  # fmt: skip


def _said(place: Shape) -> str:
    of = f"{place.of}, " if place.of else ""
    return of + (f"{place.tokens} tokens, " if place.tokens else "") + f"batch {place.batch}"


def _panels(found: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows of one machine, engine, model and length together; in turn, so that the first few have each machine."""
    panels: dict[tuple[tuple[str, ...], str], list[Row]] = {}
    for row in found:
        words = [row.shape.of, f"{row.shape.tokens} tokens" if row.shape.tokens else ""]
        title = "\n".join([", ".join(filter(None, words)) or "all rows", *row.where])
        panels.setdefault((row.where, title), []).append(row)
    seen: dict[tuple[str, ...], int] = {}
    ranked = []
    for place, ((where, title), rows) in enumerate(panels.items()):
        seen[where] = seen.get(where, -1) + 1
        ranked.append((seen[where], place, title, rows))
    return [(title, rows) for _, _, title, rows in sorted(ranked, key=lambda panel: panel[:2])]


def _draw(canvas: Canvas, panels: Sequence[tuple[str, Sequence[Row]]]) -> None:
    every = canvas.axes(2.6 if canvas.narrow else 3.1, count=len(panels), columns=2 if len(panels) in (2, 4) else 3)
    labels = list(dict.fromkeys(row.label for _, found in panels for row in found))
    known = {}
    for axes, (title, found) in zip(every, panels, strict=True):
        axes.set_title(title)
        _panel(axes, found, labels)
        known.update(dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)))
    canvas.figure.legend(known.values(), known.keys(), loc="outside upper center", ncols=1 if canvas.narrow else 3)


def _panel(axes: Axes, found: Sequence[Row], labels: Sequence[str]) -> None:
    for label in dict.fromkeys(row.label for row in found):
        line = sorted((row for row in found if row.label == label), key=lambda row: row.shape.batch)
        batches = [row.shape.batch for row in line]
        colour, place = targets.colour(line[0].target).light, labels.index(label)
        style = {"marker": _MARKERS[place % len(_MARKERS)], "linestyle": _LINES[place % len(_LINES)]}
        axes.plot(batches, [row.p50_ms for row in line], color=colour, label=label, **style)  # type: ignore[arg-type]
        tops = [row.p50_ms if row.p99_ms is None else row.p99_ms for row in line]
        axes.fill_between(batches, [row.p50_ms for row in line], tops, color=colour, alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks := sorted({row.shape.batch for row in found}), [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    logarithmic(axes.yaxis)
    axes.set_xlabel("rows in a batch")
    axes.set_ylabel("ms")
