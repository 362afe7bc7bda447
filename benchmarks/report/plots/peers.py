"""Peers side by side: how many times better this worker is at each of the figures that decide."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from benchmarks.measure import figure, times
from benchmarks.report import targets
from benchmarks.report.compared import COMMAND, QUESTIONS, Compared, Question, against, chosen, ours
from benchmarks.report.plot import INK, SOFT, Absent, Canvas, Plot
from benchmarks.report.stored import Source, Stored
from benchmarks.results_file import Measurement

_NAME, _TITLE = "peers", "Beside other workers"


def plot(known: Stored) -> Plot | Absent:
    """See the top."""
    source = chosen(known)
    answered = [(question, mine) for question in QUESTIONS if source and (mine := ours(source, question))]
    found = [(question, mine, others) for question, mine in answered if source and (others := against(source, question))]
    if source is None or not found:
        return Absent(_NAME, _TITLE, COMMAND)
    return Plot(
        _NAME,
        _TITLE,
        "A bar is how many times better this worker is than the other, on a logarithmic axis: to the right of 1 it is "
        "better, to the left worse; the line across its end spans the rounds.",
        _summary(found),
        ("", "this worker", *(targets.name(target) for target in _others(source))),
        [_row(question, mine, others, source) for question, mine, others in found],
        lambda canvas: _draw(canvas, found),
        f"{source.name}, {source.machine}",
    )


_Found = list[tuple[Question, Measurement, list[Compared]]]


def _others(source: Source) -> list[str]:
    return [target for target in source.targets("peers") if target != "ours"]


def _row(question: Question, mine: Measurement, others: list[Compared], source: Source) -> list[str]:
    by_target = {one.target: one for one in others}
    cells = [
        f"{figure(one.other.median, one.other.unit)}, {one.text}" if (one := by_target.get(target)) else "-"
        for target in _others(source)
    ]
    return [f"{question.title}: {question.what}", figure(mine.median, mine.unit), *cells]


def _summary(found: _Found) -> str:
    said = []
    for question, mine, others in found:
        than = ", ".join(f"{times(one.ratio)} {targets.name(one.target)}" for one in others)
        said.append(f"{question.title} {figure(mine.median, mine.unit)}: {than}")
    return "; ".join(said) + "."


def _draw(canvas: Canvas, found: _Found) -> None:
    most = max(len(others) for _, _, others in found)
    columns = 2
    rows = -(-len(found) // columns)
    height = 0.6 + 0.27 * most
    every = canvas.axes(height if canvas.narrow else height * rows, rows=rows, columns=columns)
    ratios = [ratio for _, _, others in found for one in others for ratio in one.ratios]
    limits = min(0.4, *ratios) / 1.25, max(2.5, *ratios) * 2.6  # room for the figure behind the longest bar
    for axes, one in zip(every, found, strict=False):
        _bars(axes, *one, limits=limits)
    for axes in every[len(found) :]:
        axes.remove()


def _bars(
    axes: Axes, question: Question, mine: Measurement, others: list[Compared], *, limits: tuple[float, float]
) -> None:
    for place, one in enumerate(others):
        colour = targets.colour(one.target).light
        axes.barh(place, one.ratio - 1, left=1, height=0.62, color=colour)
        axes.plot([min(one.ratios), max(one.ratios)], [place, place], color=INK.light, linewidth=1)
        axes.annotate(
            times(one.ratio), (max(*one.ratios, 1.0), place), (5, 0), textcoords="offset points", va="center",
            color=INK.light, fontweight="bold",
        )  # fmt: skip
    axes.axvline(1, color=SOFT.light, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    ticks = [tick for tick in (0.1, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if limits[0] <= tick <= limits[1]]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(others)), [_short(one.target) for one in others])
    axes.set_ylim(len(others) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_title(f"{question.title}: {figure(mine.median, mine.unit)}")


def _short(target: str) -> str:
    return targets.name(target).replace("sentence-transformers", "s-t").partition(":")[0]
