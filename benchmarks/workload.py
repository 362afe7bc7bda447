"""Frozen inputs: the same seed gives the same texts on every machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

_WORDS = (
    "the a of to and in is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were her all she there would their we him been has when who will more no if out so said what up "
    "its about into than them can only other new some could time these two may then do first any my now such like "
    "our over man me even most made after also did many before must through back years where much your way well "
    "down should because each just those people how too little state good very make world still own see men work "
    "long get here between both life being under never day same another know while last might us great old year off "
    "come since against go came right used take three engine kernel latency tensor memory buffer graph window "
    "station mountain invoice"
).split()


def stream(*, shortest: int = 8, longest: int = 90, seed: int = 0) -> Iterator[str]:
    """Texts of `shortest` to `longest` words, evenly spread, without end."""
    draw = random.Random(seed)  # noqa: S311 - benchmarks want the same numbers again
    while True:
        yield " ".join(draw.choices(_WORDS, k=draw.randint(shortest, longest)))


def texts(count: int, *, shortest: int = 8, longest: int = 90, seed: int = 0) -> list[str]:
    """The first `count` texts of a stream."""
    return list(islice(stream(shortest=shortest, longest=longest, seed=seed), count))


def arrivals(rate: float, seconds: float) -> Iterator[float]:
    """When independent clients send, in seconds from the start: a Poisson process of `rate` a second."""
    if rate <= 0:
        return
    draw = random.Random(0)  # noqa: S311 - as above
    at = draw.expovariate(rate)
    while at < seconds:
        yield at
        at += draw.expovariate(rate)
