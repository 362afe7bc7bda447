"""The search for the fastest step of int8 that passes a gate. Rule: no graph here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from export.errors import ParityFailed

_FIRST_SMOOTHED = 6
"""The first step that smooths takes one of so many inputs. On all-MiniLM-L6-v2 those 4 of 24 do half of what all do
for the worst cosine (0.972 without, 0.982, all 0.990), and every one that is left out is 0.5 % of the speed."""

Figures: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One rung of the ladder: inputs that are smoothed, by how much, and which nodes' matrices stay fp32."""

    smoothed: tuple[tuple[str, float], ...] = ()
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        matrices = "matrix" if len(self.kept) == 1 else "matrices"
        which = f"all but {len(self.kept)} weight {matrices}" if self.kept else "every weight matrix"
        inputs = "input" if len(self.smoothed) == 1 else "inputs"
        return f"{which}, {len(self.smoothed)} {inputs} smoothed" if self.smoothed else which


def search(
    attempt: Callable[[Step], Figures],
    gaining: Callable[[], Sequence[tuple[str, float]]],
    ranked: Callable[[Step], Sequence[str]],
    refuse: Callable[[Step, ParityFailed], None] = lambda step, failure: None,
) -> tuple[Figures, Step]:
    """The fastest step that passes the gate, and its figures.

    `attempt` writes a step's graph and returns the gate's figures; `refuse` is told of those that fail. Asked only when
    needed: `gaining` for the inputs to smooth, `ranked` for the names of all weight matrices' nodes, those to keep in
    fp32 first. Raises ParityFailed when half of all kept are not enough: too little would be gained.
    """
    last: list[ParityFailed] = []
    written = Step()

    def passes(step: Step) -> Figures | None:
        nonlocal written
        written = step
        try:
            return attempt(step)
        except ParityFailed as failure:
            refuse(step, failure)
            last.append(failure)
            return None

    if (figures := passes(Step())) is not None:
        return figures, Step()
    smoothed = Step()
    for some in _portions(gaining()):
        too_few, smoothed = len(smoothed.smoothed), Step(some)
        if (figures := passes(smoothed)) is None:
            continue
        fewer = Step(some[: (too_few + len(some)) // 2])
        if too_few and (found := passes(fewer)) is not None:  # half of the last portion may do
            return found, fewer
        return figures if written == smoothed else attempt(smoothed), smoothed
    names = tuple(ranked(smoothed))
    too_few, count = 0, 1
    while (figures := passes(replace(smoothed, kept=names[:count]))) is None:
        if 2 * count > len(names) // 2:
            raise last[-1]
        too_few, count = count, 2 * count
    while count - too_few > 1:  # fewer may do
        middle = (too_few + count) // 2
        if (found := passes(replace(smoothed, kept=names[:middle]))) is None:
            too_few = middle
        else:
            count, figures = middle, found
    step = replace(smoothed, kept=names[:count])
    return figures if written == step else attempt(step), step


def _portions(inputs: Sequence[tuple[str, float]]) -> Iterator[tuple[tuple[str, float], ...]]:
    """The first few, twice as many, and so on up to all."""
    count = max(1, len(inputs) // _FIRST_SMOOTHED)
    while count < len(inputs):
        yield tuple(inputs[:count])
        count *= 2
    if inputs:
        yield tuple(inputs)
