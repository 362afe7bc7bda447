"""Peers side by side: how many times better this worker is at each of the figures that decide."""

from __future__ import annotations

from matplotlib.axes import Axes

from benchmarks.measure import MISSING, figure, times
from benchmarks.report import targets
from benchmarks.report.compared import (
    COMMAND,
    OURS,
    QUESTIONS,
    SCENARIO,
    Compared,
    Question,
    against,
    chosen,
    ours,
)
from benchmarks.report.plot import INK, SOFT, Absent, Canvas, Plot
from benchmarks.report.stored import Source, Stored
from benchmarks.results_file import Measurement

_NAME, _TITLE = "peers", "Beside other workers"


def plot(known: Stored) -> Plot | Absent:
    """See the top."""
    source = chosen(known)
    found = answers(source) if source else []
    if source is None or not found:
        return Absent(_NAME, _TITLE, COMMAND)
    return Plot(
        _NAME,
        _TITLE,
        "A bar is how many times better this worker is than the other, on a logarithmic axis: to the right of 1 it is "
        "better, to the left worse; the line across its end spans the rounds.",
        _summary(found),
        table_header(found),
        table_rows(source, found),
        lambda canvas: _draw(canvas, found),
        known.credits(SCENARIO, [source]),
    )


_Found = list[tuple[Question, Measurement, list[Compared]]]


def answers(source: Source) -> _Found:
    """The questions that this worker and another answered."""
    answered = [(question, mine) for question in QUESTIONS if (mine := ours(source, question))]
    return [(question, mine, others) for question, mine in answered if (others := against(source, question))]


def table_header(found: _Found) -> list[str]:
    """A column a question."""
    return ["", *(f"{question.title}: {question.what}" for question, _, _ in found)]


def table_rows(source: Source, found: _Found) -> list[list[str]]:
    """A row a target, this worker first; behind a figure in brackets how many times better this worker's is."""
    rows = [[targets.name(OURS), *(figure(mine.median, mine.unit) for _, mine, _ in found)]]
    others = [target for target in source.targets(SCENARIO) if target != OURS]
    for target in sorted(others, key=lambda name: name == "floor"):
        cells = [next((_cell(one) for one in compared if one.target == target), MISSING) for _, _, compared in found]
        rows.append([targets.name(target), *cells])
    return rows


def _cell(one: Compared) -> str:
    return f"{figure(one.other.median, one.other.unit)} ({times(one.ratio)})"


def _summary(found: _Found) -> str:
    said = []
    for question, mine, others in found:
        than = ", ".join(f"{times(one.ratio)} {targets.name(one.target)}" for one in others)
        said.append(f"{question.title} {figure(mine.median, mine.unit)}: {than}")
    return "; ".join(said) + "."


def _draw(canvas: Canvas, found: _Found) -> None:
    names = list(dict.fromkeys(one.target for _, _, others in found for one in others))
    columns = 3
    every = canvas.axes(0.6 + 0.26 * len(names), count=len(found), columns=columns)
    ratios = [ratio for _, _, others in found for one in others for ratio in one.ratios]
    room = 6 if canvas.narrow else 3.2  # for the figure behind the longest bar
    limits = min(0.4, *ratios) / 1.25, max(2.5, *ratios) * room
    every_mark = (0.01, 0.1, 1, 10, 100) if canvas.narrow else (0.01, 0.1, 0.5, 1, 2, 5, 20, 100, 500)
    marks = [mark for mark in every_mark if limits[0] <= mark <= limits[1]]
    for place, (axes, (question, mine, others)) in enumerate(zip(every, found, strict=True)):
        _bars(axes, others, names, limits, marks)
        axes.set_title(f"{question.title}: {figure(mine.median, mine.unit)}")
        if not canvas.narrow and place % columns:
            axes.set_yticklabels([])


def _bars(
    axes: Axes, others: list[Compared], names: list[str], limits: tuple[float, float], marks: list[float]
) -> None:
    by_target = {one.target: one for one in others}
    for place, name in enumerate(names):
        one = by_target.get(name)
        if one is None:
            _note(axes, "not measured", 1.0, place)
            continue
        axes.barh(place, one.ratio - 1, left=1, height=0.62, color=targets.colour(name).light)
        axes.plot([min(one.ratios), max(one.ratios)], [place, place], color=INK.light, linewidth=1)
        _note(axes, times(one.ratio), max(*one.ratios, 1.0), place, fontweight="bold")
    axes.axvline(1, color=SOFT.light, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.set_xticks(marks, [f"{mark:g}x" for mark in marks])
    axes.minorticks_off()
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def _note(axes: Axes, text: str, x: float, place: int, fontweight: str = "normal") -> None:
    axes.annotate(
        text, (x, place), (5, 0), textcoords="offset points", va="center", color=INK.light, fontweight=fontweight
    )


def _short(target: str) -> str:
    return targets.name(target).replace("sentence-transformers", "s-t")
