"""The figures that come first: ours, and how many times better it is than each peer and than the floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measure import figure, times
from benchmarks.report import targets
from benchmarks.report.compared import QUESTIONS, against, chosen, ours
from benchmarks.report.stored import Stored
from benchmarks.report.targets import Colour

_SHOWN = ("ours-int8", "stock", "fastembed", "infinity", "infinity-http", "litserve", "tei", "triton", "floor")
"""What a user would run instead; libraries without a worker around them are in the plot and its table only."""


@dataclass(frozen=True)
class Line:
    """One ratio of a card."""

    ratio: str
    spread: str
    than: str
    their: str
    colour: Colour


@dataclass(frozen=True)
class Card:
    """One headline figure."""

    title: str
    what: str
    value: str
    unit: str
    lines: Sequence[Line]


def cards(known: Stored) -> list[Card]:
    """A card for each question that was measured; empty without a run of peers."""
    source = chosen(known)
    if source is None:
        return []
    made = []
    for question in QUESTIONS:
        mine = ours(source, question)
        if mine is None:
            continue
        lines = [
            Line(
                times(one.ratio),
                f"rounds {figure(min(one.ratios))} to {figure(max(one.ratios))}",
                targets.name(one.target),
                figure(one.other.median, one.other.unit),
                targets.colour(one.target),
            )
            for one in against(source, question)
            if one.target in _SHOWN
        ]
        made.append(Card(question.title, question.what, figure(mine.median), mine.unit, lines))
    return made
