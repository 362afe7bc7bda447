"""By what factor one sample lies above another, and between what bounds that factor is known. Rule: pure.

The factor is the Hodges-Lehmann estimate, the median of all pairwise ratios; its bounds are the ratios at the ranks
that the exact null distribution of Mann and Whitney's U gives. Nothing is assumed of the noise but that it is the same
in both samples: no normal distribution, and one wild repeat moves little. Sources: H. B. Mann and D. R. Whitney, Annals
of Mathematical Statistics 18 (1947) 50-60; J. L. Hodges and E. L. Lehmann, ibid. 34 (1963) 598-611; the bounds as in
M. Hollander, D. A. Wolfe and E. Chicken, Nonparametric Statistical Methods, section 4.3.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

_ROUNDING = 1e-9  # three repeats against three give 0.05 exactly, which 1 - 0.95 is not


class Shift(NamedTuple):
    """After over before: the estimate, and a bound to either side."""

    factor: float
    low: float
    """The factor is at least this, at the confidence asked for; -inf when there are too few values to say."""
    high: float
    """Likewise at most this; inf."""


def shift(before: Sequence[float], after: Sequence[float], confidence: float) -> Shift:
    """The factor from `before` to `after`; each bound holds at `confidence` on its own (0.95: one error in 20).

    Where a value is zero or below, a factor means nothing: the difference over the size of the median before is taken,
    plus 1. Raises ValueError when either is empty.
    """
    if not before or not after:
        raise ValueError("there are no values to compare")
    if min(*before, *after) > 0:
        factors = sorted(new / old for old in before for new in after)
    else:
        size = abs(statistics.median(before)) or 1.0
        factors = sorted(1 + (new - old) / size for old in before for new in after)
    rank = critical_rank(len(before), len(after), 1 - confidence)
    if not rank:
        return Shift(statistics.median(factors), -math.inf, math.inf)
    return Shift(statistics.median(factors), factors[rank - 1], factors[-rank])


def critical_rank(first: int, second: int, error: float) -> int:
    """The highest rank whose value, counted from either end, bounds the shift with at most this chance of error.

    0 when there is none: with three values each and 5 % it is 1, with two each there is none.
    """
    counts, total = u_counts(first, second), math.comb(first + second, first)
    rank = below = 0
    for count in counts:
        below += count
        if below / total > error + _ROUNDING:
            break
        rank += 1
    return rank


def u_counts(first: int, second: int) -> list[int]:
    """In how many orders of two samples of these sizes U is 0, 1, 2 ...: the coefficients of a Gaussian binomial."""
    counts = [1] + [0] * (first * second)
    for size in range(1, first + 1):
        for at in range(len(counts) - 1, second + size - 1, -1):  # times 1 - x^(second + size)
            counts[at] -= counts[at - second - size]
        for at in range(size, len(counts)):  # over 1 - x^size
            counts[at] += counts[at - size]
    return counts
