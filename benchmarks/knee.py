"""The knee of open loops: up to which rate of arrivals a worker keeps up. Rule: pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.rounds import REACHED

KNEE = 3.0
"""Up to the knee, p99 is at most this multiple of what it is at the lowest rate."""
_KNEE_OF = ("offered_per_s", "reached_per_s", "p99_ms")


def knee(loops: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The highest offered rate that was reached with a p99 of at most KNEE times that at the lowest rate.

    Medians of the rounds in which a job came. None without such, or when not even the lowest rate was reached.
    """
    rates = []
    for loop in loops:
        rounds = [one for one in zip(*(loop[name] for name in _KNEE_OF), strict=True) if one[0] > 0]
        if rounds:
            answered = [(*both, math.inf if math.isnan(p99) else p99) for *both, p99 in rounds]  # NaN: all failed
            medians = map(statistics.median, zip(*answered, strict=True))
            rates.append({"point": loop["point"], **dict(zip(_KNEE_OF, medians, strict=True))})
    rates.sort(key=lambda rate: rate["offered_per_s"])
    last = None
    for rate in rates:
        if rate["reached_per_s"] < REACHED * rate["offered_per_s"] or rate["p99_ms"] > KNEE * rates[0]["p99_ms"]:
            break
        last = rate
    return last
