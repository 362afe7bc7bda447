"""How far two answers are apart: the measures that the parity gate compares by. A task chooses its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.tensors import Array, Arrays

HALF = ("fp16", "bf16")


@dataclass(frozen=True)
class Measure:
    """One figure of a comparison and the limit that it must keep.

    `at_least`: whether high is good. `column` heads it in the table of a gate that failed.
    """

    name: str
    limit: float
    int8_limit: float
    """For a graph whose weights are bytes: it answers a little differently by design."""
    at_least: bool = False
    column: str = ""
    half_limit: float | None = None
    """For fp16 and bf16; None: ten times as far from perfect as fp32 may be."""

    @property
    def key(self) -> str:
        """The name of the limit, and of the worst figure, in parity.json."""
        return f"{'min' if self.at_least else 'max'}_{self.name}"

    @property
    def words(self) -> str:
        """The name in a sentence."""
        return self.name.replace("_", " ")

    def at(self, precision: str, limit: float | None = None, reserve: float = 0.0) -> Measure:
        """This measure with the limit of `precision`, or with one that was asked for.

        `reserve` is a share of what the limit allows that must be left.
        """
        half = 1 - 10 * (1 - self.limit) if self.at_least else 10 * self.limit
        by_precision = {
            "int8": self.int8_limit,
            **dict.fromkeys(HALF, half if self.half_limit is None else self.half_limit),
        }
        found = by_precision.get(precision, self.limit) if limit is None else limit
        allowed = 1 - found if self.at_least else found
        if reserve and allowed < 1:  # 1 is no limit
            found = 1 - allowed * (1 - reserve) if self.at_least else allowed * (1 - reserve)
        return replace(self, limit=found)

    def passes(self, value: float) -> bool:
        """Whether `value` keeps the limit; NaN does not."""
        return value >= self.limit if self.at_least else value <= self.limit

    def badness(self, value: float) -> float:
        """Sorts the worst first; NaN is the worst."""
        if not np.isfinite(value):
            return float("inf")
        return 1 - value if self.at_least else value

    def worst(self, values: Iterable[float]) -> float:
        """The worst of `values`; min and max pass over a NaN that does not come first."""
        return max(values, key=self.badness)

    def rounded(self, value: float) -> float:
        """For parity.json: so that the last bits of a sum do not make two equal bundles differ."""
        return round(value, 7) if self.at_least else float(f"{value:.0e}")

    def shown(self, value: float) -> str:
        """For the table of a gate that failed."""
        return f"{value:.7f}" if self.at_least else f"{value:.1e}"

    def told(self, value: float) -> str:
        """For the line of a gate that passed."""
        return f"{self.words} at least {value:.7f}" if self.at_least else f"{self.words} at most {value:.0e}"

    def required(self) -> str:
        """For the sentence of a gate that failed."""
        return f"{self.words} {'at least' if self.at_least else 'at most'} {self.limit:.6g}"


def cosine(expected: Array, found: Array) -> float:
    """The cosine between two vectors; NaN where one of them is zero, which fails every limit, as it should."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(all="ignore"):
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def relative_difference(expected: Array, found: Array) -> float:
    """The largest difference of a component, relative to the norm of what was expected."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(all="ignore"):
        return float(np.abs(a - b).max() / np.linalg.norm(a))


def score_difference(expected: Array, found: Array) -> float:
    """The largest difference of a score; relative where scores are above 1, as those of regressions and logits are."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    return float(np.abs(a - b).max(initial=0.0) / max(1.0, np.abs(a).max(initial=0.0)))


def agreement(expected: Array, found: Array, margin: float) -> float:
    """The share of vectors (along the last axis) whose largest component is at the same place.

    A vector whose two largest components are within `margin` of each other has no place to agree on, and counts as
    agreeing: the limit on differences judges it.
    """
    a, b = (values.reshape(-1, values.shape[-1]) for values in (expected, found))
    if a.shape[-1] < 2 or not len(a):
        return 1.0
    top = np.partition(a, -2, axis=-1)[:, -2:]
    tied = top[:, 1] - top[:, 0] <= margin
    return float(np.mean(tied | (a.argmax(-1) == b.argmax(-1))))


def neighbours(expected: Array, found: Array, count: int = 10) -> float:
    """How many of each vector's nearest `count` others (by cosine) are the same in both sets, on average.

    Rows are vectors; those that are zero are nobody's neighbours. Of few rows the nearer half is looked at: that all of
    the others are the same says nothing.
    """
    a, b = (values.astype(np.float64) for values in (expected, found))
    both = (np.linalg.norm(a, axis=1) > 0) & (np.linalg.norm(b, axis=1) != 0)
    a, b = a[both], b[both]
    count = min(count, (len(a) - 1) // 2)
    if not np.isfinite(b).all():
        return float("nan")
    if count < 1:
        return 1.0
    nearest = []
    for values in (a, b):
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        cosines = unit @ unit.T
        np.fill_diagonal(cosines, -np.inf)
        nearest.append((cosines, np.argsort(-cosines, axis=1)[:, :count]))
    (exact, _), (_, ours) = nearest
    # Ours are right as far as they are no farther than the last of the right ones: equal texts have equal places.
    last = np.sort(exact, axis=1)[:, -count][:, None] - 1e-6
    return float(np.mean(np.take_along_axis(exact, ours, axis=1) >= last))


def kendall(expected: Array, found: Array, margin: float = 1e-6) -> float:
    """Kendall's tau of two lists of scores: pairs in the same order less pairs in the other, of all pairs.

    Pairs that are within `margin` of each other in `expected` have no order and are left out.
    """
    a, b = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    one, other = np.triu_indices(len(a), 1)
    apart = a[one] - a[other]
    ordered = np.abs(apart) > margin
    if not ordered.any():
        return 1.0
    return float(np.mean(np.sign(apart[ordered]) * np.sign((b[one] - b[other])[ordered])))


def of_both(expected: Sequence[Arrays], found: Sequence[Arrays], name: str) -> tuple[Array, Array]:
    """Tensor `name` of every row, flat, on top of each other."""
    a, b = ([one[name].reshape(-1) for one in rows] for rows in (expected, found))
    return np.stack(a), np.stack(b)


NEIGHBOURS = Measure("neighbours", 0.99, 0.7, at_least=True, column="same neighbours", half_limit=0.9)
"""Of tasks that answer with vectors: of the ten nearest of every row, how many are. What a search would notice."""

VECTORS = (
    # Measured on all-MiniLM-L6-v2: runs that differ only in padding agree to 1 - 4e-13; a lost token, a wrong segment
    # or position, or padding that is seen costs at least 2e-3 even in the text where it shows least. Deeper models are
    # noisier, which is why the limit is not nearer to 1. In int8 mean cosines there are 0.99 and above; below 0.98 the
    # order of near neighbours begins to change.
    Measure("cosine", 0.99999, 0.98, at_least=True, column="cosine", half_limit=0.999),
    # Sees a wrong scale, which a cosine does not, and a single wrong component. Of the runs above, equal ones differ by
    # 2e-7 and wrong ones by at least 1e-2. In int8 a lost scale would cost several times 0.1.
    Measure("relative_difference", 1e-3, 0.1, column="difference", half_limit=0.03),
)
"""Measures of tasks that answer with vectors, of texts or images."""

SCORES = (
    # Scores are what a caller sees. In fp32 the same model in another runtime differs by about 1e-6.
    Measure("difference", 1e-4, 0.1, column="difference", half_limit=0.02),
    # Whether the best is the same; where the two best are so near that differences may swap them, either may be.
    # In less than fp32 the difference alone decides for a row; how often the best is the same, for all rows together.
    Measure("agreement", 1.0, 0.0, at_least=True, column="same best", half_limit=0.0),
)
"""Measures of tasks that answer with scores."""

SAME_BEST = Measure("same_best", 0.99, 0.9, at_least=True, column="same best", half_limit=0.98)
"""Of such tasks: the share of all rows whose best label is the same, nearly equal ones included."""


def compare_vectors(expected: Array, found: Array) -> Sequence[float]:
    """The figures of VECTORS; several vectors, such as one for each patch of an image, count as one long vector.

    Two that are zero are the same: of a text about nothing, as sparse ones have it and those behind a ReLU.
    """
    a, b = expected.ravel(), found.ravel()
    if not a.any() and not b.any():
        return 1.0, 0.0
    return cosine(a, b), relative_difference(a, b)


def compare_scores(expected: Array, found: Array) -> Sequence[float]:
    """The figures of SCORES."""
    return score_difference(expected, found), agreement(expected, found, 2 * SCORES[0].limit)


def same_best(expected: Sequence[Arrays], found: Sequence[Arrays], name: str) -> float:
    """The figure of SAME_BEST, of tensor `name`, scores or logits, of all rows."""
    return agreement(*of_both(expected, found, name), 1e-4)


def same_neighbours(expected: Sequence[Arrays], found: Sequence[Arrays], name: str) -> float:
    """The figure of NEIGHBOURS, of tensor `name`, a vector a row."""
    return neighbours(*of_both(expected, found, name))
