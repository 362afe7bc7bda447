"""How steps of int8 are judged, more strictly than the gate alone would, and in which order they are taken.

A search takes the step that just passes, on rows that it has seen. Two things keep it from the edge: a reserve, and a
limit on the mean, which hardly depends on the rows. What is smoothed or kept in fp32 first is what brings the answers
themselves nearest to those of fp32, by trying, one by one, those that look best in the graph.

Measured on all-MiniLM-L6-v2, dynamic int8, as the least cosine of 3,000 texts that the search had not seen. Smoothed in
the order of what each product loses by itself, 7 inputs pass the gate, where the least cosine is 0.985, and have 0.976
on those texts; 9 have 0.980. In the order of their effect on the answers, 6 inputs have 0.985.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from export.errors import ParityFailed
from export.gate.limits import GateLimits
from export.parity import Gate
from export.precision.candidates import Candidate
from export.precision.trials import Checked

RESERVE = 0.1
"""Of what a limit of int8 allows, this share must be left over: among texts that nobody tried some are worse."""

MEAN = 0.3
"""Of what the limit of a cosine allows, the mean may take this share. On all-MiniLM-L6-v2 the worst of 1,800 or
3,000 texts is 2.1 to 3.2 times as far off as the mean, whatever is smoothed."""

_ROWS_TRIED = 100
_SHORTLIST = 12
"""Matrices that are tried one by one. On all-MiniLM-L6-v2 the four that matter most are among the ten whose products
suffer most; trying each costs a quantization and _ROWS_TRIED rows."""

_INPUTS_TRIED = 16
"""Likewise inputs to smooth: there the six that matter most are among the 15 that gain most, and not among 14."""

_One = TypeVar("_One")


class Int8Gate:
    """The gate as steps of int8 must pass it; limits that were asked for, and only those, are taken as they are."""

    def __init__(self, gate: Gate, limits: GateLimits) -> None:
        self.gate = gate
        self._limits = replace(limits, reserve=RESERVE)

    def check(self, candidate: Candidate, *, stop_early: bool = True) -> Checked:
        """The figures of parity.json, or why it is left; figures are then of what was compared until then."""
        try:
            figures = self.gate.check(self._limits, [candidate], stop_early=stop_early)
        except ParityFailed as failure:
            return failure
        return figures if "min_cosine" in figures.get("overridden", ()) else _judged_by_mean(figures)

    def nearest(
        self, made: Mapping[str, Callable[[], Candidate]], *, stop_early: bool = True
    ) -> tuple[str, dict[str, Checked]]:
        """What each calibration comes to, by its method, and the method to take.

        That is the one that passes; of several, or of none, the one whose worst row is nearer by the first measure.
        """
        found: dict[str, Checked] = {}
        rank: dict[str, tuple[bool, float]] = {}
        for method, make in made.items():
            found[method] = self.check(make(), stop_early=stop_early)
            rank[method] = isinstance(found[method], ParityFailed), self.gate.badness
        return min(rank, key=lambda method: rank[method]), found

    def inputs(
        self, gaining: Sequence[tuple[str, float]], made: Callable[[tuple[str, float]], Candidate]
    ) -> list[tuple[str, float]]:
        """Inputs to smooth, the best first; `made` makes the graph with one of them smoothed."""
        return self._nearest(gaining, made, _INPUTS_TRIED)

    def matrices(self, suffering: Sequence[str], made: Callable[[str], Candidate]) -> list[str]:
        """Names of nodes to keep in fp32, the best first; `made` makes the graph with one of them kept."""
        return self._nearest(suffering, made, _SHORTLIST)

    def _nearest(self, ones: Sequence[_One], made: Callable[[_One], Candidate], tried: int) -> list[_One]:
        """The first `tried`, the one first with which answers are nearest to fp32 on average; then the others."""
        off = {one: self.gate.mean_badness(_ROWS_TRIED, made(one)) for one in ones[:tried]}
        return [*sorted(off, key=lambda one: off[one]), *ones[tried:]]


def figures_of(checked: Checked) -> Mapping[str, Any]:
    """Of a check that passed, and of one that did not."""
    return checked.figures if isinstance(checked, ParityFailed) else checked


def _judged_by_mean(figures: dict[str, Any]) -> Checked:
    limit = figures["limits"].get("min_cosine")
    if limit is None:
        return figures
    needed = 1 - MEAN * (1 - limit)
    mean = min(graph["mean_cosine"] for graph in figures["graphs"].values())
    if mean >= needed:
        return figures
    failure = ParityFailed(
        f"a mean cosine of at least {needed:.6g} is required, so that answers to other rows keep {limit:.6g}; "
        f"it is {mean:.6g}",
        [],
    )
    failure.figures = figures
    return failure
