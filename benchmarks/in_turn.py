"""Targets in turn, round by round: one that cannot be had, or fails in a round, costs no figures but its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar

from benchmarks.measure import say
from benchmarks.rounds import Figures, Round
from benchmarks.targets.base import Target

T = TypeVar("T", bound=Target)
Points = dict[str, Figures]
"""What one round found of one target."""


def prepared(found: Iterable[T], needed: Collection[str]) -> tuple[list[T], dict[str, dict[str, str]]]:
    """Those that could be made ready, and the versions of what they run. Raises RuntimeError for one of `needed`."""
    ready, versions = [], {}
    for target in found:
        try:
            versions[target.name] = dict(target.prepare())
        except RuntimeError as error:
            if target.name in needed:
                raise
            say(f"{target.name} is left out: {error}")
        else:
            ready.append(target)
    return ready, versions


def in_turn(
    found: Sequence[T],
    rounds: int,
    measure: Callable[[T, int], Points],
    needed: Collection[str],
    keep: Callable[[Sequence[Round]], None] = lambda made: None,
) -> list[Round]:
    """What `measure` finds of each target in each round, which it gets the number of; `keep` is called after each.

    The floor comes first, the order of the others is turned round every time. Raises what `measure` does, where it is
    RuntimeError or TimeoutError only for those in `needed`.
    """
    floor, others = ([one for one in found if (one.name == "floor") is is_floor] for is_floor in (True, False))
    made: list[Round] = []
    for number in range(rounds):
        figures: dict[str, Points] = {}
        for target in (*floor, *(reversed(others) if number % 2 else others)):
            say(f"round {number + 1} of {rounds}: {target.name}")
            try:
                figures[target.name] = measure(target, number)
            except (RuntimeError, TimeoutError) as error:
                if target.name in needed:
                    raise
                say(f"{target.name} failed in this round: {error}")
        made.append({(one.name, point): of for one in found for point, of in figures.get(one.name, {}).items()})
        keep(made)
    return made
