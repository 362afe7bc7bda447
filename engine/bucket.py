"""Bucket, ladder, and the smallest bucket that fits. Rule: pure, no arrays, no I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload


class Bucket(NamedTuple):
    """A fixed shape that rows are padded to: `batch` rows of `length` tokens."""

    batch: int
    length: int

    @property
    def tokens(self) -> int:
        """Tokens that a run of this bucket computes, padding included."""
        return self.batch * self.length


class Ladder(Sequence[Bucket]):
    """All buckets of an engine, smallest first: every batch size with every length.

    Raises ValueError when a size is missing, below 1, or out of order.
    """

    def __init__(self, batches: Sequence[int], lengths: Sequence[int]) -> None:
        for name, sizes in (("batch sizes", batches), ("lengths", lengths)):
            if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
                raise ValueError(f"{name} must be rising whole numbers from 1 up, got {list(sizes)}")
        self.batches = tuple(batches)
        self.lengths = tuple(lengths)

    @property
    def largest(self) -> Bucket:
        """The bucket that holds every other one."""
        return Bucket(self.batches[-1], self.lengths[-1])

    def fit(self, batch: int, length: int) -> Bucket:
        """The smallest bucket that holds `batch` rows of at most `length` tokens.

        Raises ValueError when none does.
        """
        at_batch = bisect_left(self.batches, batch)
        at_length = bisect_left(self.lengths, length)
        if at_batch == len(self.batches) or at_length == len(self.lengths):
            raise ValueError(f"no bucket holds {batch} rows of {length} tokens; the largest is {self.largest}")
        return Bucket(self.batches[at_batch], self.lengths[at_length])

    def least(self, bucket: Bucket) -> Bucket:
        """The fewest rows, and the shortest, that `fit` gives `bucket`, which is of this ladder."""
        batch = max((size for size in self.batches if size < bucket.batch), default=0) + 1
        return Bucket(batch, max((size for size in self.lengths if size < bucket.length), default=0) + 1)

    def __len__(self) -> int:
        return len(self.batches) * len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Bucket: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Bucket]: ...
    def __getitem__(self, index: int | slice) -> Bucket | Sequence[Bucket]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at_batch, at_length = divmod(range(len(self))[index], len(self.lengths))
        return Bucket(self.batches[at_batch], self.lengths[at_length])

    def __iter__(self) -> Iterator[Bucket]:
        return (Bucket(batch, length) for batch in self.batches for length in self.lengths)

    def __repr__(self) -> str:
        return f"Ladder(batches={self.batches}, lengths={self.lengths})"


def rungs(maximum: int, step: int) -> tuple[int, ...]:
    """Sizes from `step` up in steps of `step`, closed by `maximum` itself."""
    return (*range(step, maximum, step), maximum)
