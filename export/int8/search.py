"""The search for the fastest step of int8 that passes a gate. Rule: no graph here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from export.errors import ParityFailed

_FIRST_SMOOTHED = 6
"""The first step that smooths takes the first sixth of the inputs. On all-MiniLM-L6-v2 these 4 of 24 bring the worst
cosine from 0.972 to 0.982, half of the way to the 0.990 of all; each input that is not smoothed is 0.5 % faster."""

_FINEST = 24
"""Between a number of inputs that passes and one that does not, the search halves down to a 24th of all inputs."""

Figures: TypeAlias = dict[str, Any]
Found: TypeAlias = "tuple[Figures, Step]"


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
) -> tuple[Figures, Step]:
    """The fastest step that passes the gate, and its figures; it need not be the one that was tried last.

    `attempt` returns the gate's figures of a step, or raises ParityFailed. Asked only when needed: `gaining` for the
    inputs to smooth, `ranked` for the names of all nodes with weights, those to keep in fp32 first. Raises ParityFailed
    when half of all kept are not enough: too little would be gained.
    """
    last: list[ParityFailed] = []

    def passes(step: Step) -> Figures | None:
        try:
            return attempt(step)
        except ParityFailed as failure:
            last.append(failure)
            return None

    def fewest(make: Callable[[int], Step], too_few: int, enough: int, finest: int, figures: Figures) -> Found:
        """The smallest count that passes, where `too_few` does not and `enough` does with `figures`."""
        while enough - too_few > finest:
            middle = (too_few + enough) // 2
            if (found := passes(make(middle))) is None:
                too_few = middle
            else:
                enough, figures = middle, found
        return figures, make(enough)

    if (figures := passes(Step())) is not None:
        return figures, Step()
    inputs = tuple(gaining())
    too_few = 0
    for count in _portions(len(inputs)):
        if (figures := passes(Step(inputs[:count]))) is not None:
            # The first portion is small enough as it is.
            finest = max(1, len(inputs) // _FINEST) if too_few else count
            return fewest(lambda some: Step(inputs[:some]), too_few, count, finest, figures)
        too_few = count
    smoothed = Step(inputs)
    names = tuple(ranked(smoothed))
    too_few, count = 0, 1
    while (figures := passes(replace(smoothed, kept=names[:count]))) is None:
        if 2 * count > len(names) // 2:
            raise last[-1]
        too_few, count = count, 2 * count
    return fewest(lambda some: replace(smoothed, kept=names[:some]), too_few, count, 1, figures)


def _portions(inputs: int) -> Iterator[int]:
    """The first few, twice as many, and so on up to all."""
    count = max(1, inputs // _FIRST_SMOOTHED)
    while count < inputs:
        yield count
        count *= 2
    if inputs:
        yield inputs
