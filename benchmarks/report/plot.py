"""A plot: its figures as a table, and the drawing of them, as SVG for the page and as files beside it.

Drawn twice, wide and narrow, because a wide plot made small cannot be read. Text stays text: it can be searched, read
aloud and is smaller than outlines. In the page's copy colours are variables of the style sheet, so that it follows the
reader's light or dark mode; the files have the light ones.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.report import targets
from benchmarks.report.stored import RESULTS
from benchmarks.report.targets import Colour

INK = Colour("#1f2430", "#e6e9ef")
SOFT = Colour("#5d6675", "#a9b1bf")
GRID = Colour("#d9dde4", "#39404d")
PAPER = Colour("#ffffff", "#171a21")
COLOURS = (INK, SOFT, GRID, PAPER, *targets.ALL, *targets.STAGES)


@dataclass(frozen=True)
class Canvas:
    """Where a plot is drawn: it asks whether there is room, and for axes."""

    narrow: bool
    figure: Figure

    def axes(self, inches: float, *, count: int = 1, columns: int = 1) -> list[Axes]:
        """`count` axes of this height each, in so many columns; below each other where it is narrow."""
        columns = 1 if self.narrow else min(columns, count)
        rows = -(-count // columns)
        self.figure.set_size_inches(_WIDTH[self.narrow], inches * rows)
        made = self.figure.subplots(rows, columns, squeeze=False)
        every = [axes for line in made for axes in line]
        for axes in every[count:]:
            axes.remove()
        return every[:count]


Draw = Callable[[Canvas], None]


@dataclass(frozen=True)
class Plot:
    """What a plot shows, in words, in figures and as a drawing."""

    name: str
    """Of its files, and of its place on the page."""
    title: str
    read: str
    """One sentence: how to read it."""
    summary: str
    """One sentence with the main figures, for those who do not see it."""
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    draw: Draw
    source: str
    """Which files, and of which machines."""


@dataclass(frozen=True)
class Absent:
    """A plot that has no figures."""

    name: str
    title: str
    command: str
    """What measures them."""

    def into(self, folder: Path) -> Absent:
        """The same, measured to `folder` instead of the committed results."""
        return replace(self, command=self.command.replace(f"{RESULTS}/", f"{folder}/"))


def svg(plot: Plot, *, narrow: bool = False) -> str:
    """A drawing as a file of its own, in the light colours."""
    return _drawn(plot, narrow, "svg").decode()


def png(plot: Plot) -> bytes:
    """The wide drawing in pixels."""
    return _drawn(plot, False, "png")


def inline(plot: Plot, *, narrow: bool) -> str:
    """A drawing for the page: with title and description, its own ids, colours from the style sheet."""
    key = f"{plot.name}-{'narrow' if narrow else 'wide'}"
    text = svg(plot, narrow=narrow)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{key}-", text)
    for colour in COLOURS:
        text = re.sub(re.escape(colour.light), f"var({colour.variable})", text, flags=re.IGNORECASE)
    size = re.search(r'viewBox="[^"]+"', text)
    assert size is not None, "matplotlib writes a viewBox"
    label = f'role="img" aria-labelledby="{key}-title {key}-desc"'
    words = f'<title id="{key}-title">{escape(plot.title)}</title><desc id="{key}-desc">{escape(plot.summary)}</desc>'
    kind: Literal["narrow", "wide"] = "narrow" if narrow else "wide"
    opening = f'<svg class="{kind}" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return re.sub(r"<svg[^>]*>", lambda _: f"{opening} {size[0]} {label}>{words}", text, count=1)


_WIDTH = {False: 9.4, True: 3.7}  # inches; a narrow one is seen at about its own size
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # wide: what a browser takes instead fits into its room
    "text.color": INK.light,
    "axes.labelcolor": SOFT.light,
    "axes.edgecolor": GRID.light,
    "axes.titlecolor": INK.light,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID.light,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT.light,
    "ytick.color": SOFT.light,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def _style(plot: Plot, narrow: bool) -> Iterator[None]:
    size = 8.5 if narrow else 9.0
    sizes: dict[str, Any] = {f"{part}.labelsize": size for part in ("axes", "xtick", "ytick")}
    sizes |= {"font.size": size, "axes.titlesize": size + 0.5, "legend.fontsize": size}
    style: Any = {**_STYLE, **sizes, "svg.hashsalt": plot.name}  # matplotlib types every name
    with matplotlib.rc_context(style):
        yield


def _drawn(plot: Plot, narrow: bool, kind: Literal["svg", "png"]) -> bytes:
    with _style(plot, narrow):
        figure = Figure(layout="constrained")
        plot.draw(Canvas(narrow, figure))
        if kind == "png":
            figure.set_facecolor(PAPER.light)
        file = io.BytesIO()
        # Without the date, so that the same figures make the same file.
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(file, format=kind, dpi=160 if kind == "png" else 72, metadata=metadata)
    return file.getvalue()


def wrapped(label: str, *, narrow: bool) -> str:
    """The name of a bar, what tells files apart on a line of its own; where it is narrow in as many as it has parts."""
    name, _, apart = label.partition(" (")
    if not apart:
        return name.replace(", ", ",\n", 1) if narrow else name
    return f"{name}\n(" + (apart.replace(", ", ",\n") if narrow else apart)


def bars_inches(labels: Sequence[str], one: float) -> float:
    """The height of so many bars, of which one with a name on one or two lines takes `one`."""
    lines = max(label.count("\n") + 1 for label in labels)
    return len(labels) * max(one, 0.17 * lines)


def logarithmic(axis: Axis, *, coarse: bool = False) -> None:
    """Ticks at 1, 2 and 5 of every power of ten, or at the powers alone, written as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1,) if coarse else (1, 2, 5), numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")
