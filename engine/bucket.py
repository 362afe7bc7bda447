"""Bucket, ladder, and the smallest bucket that fits. Rule: pure, no arrays, no I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cached_property
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

    With `max_tokens`, only those that batches of at most so many tokens come to (`is_for`). Raises ValueError when a
    size is missing, below 1, or out of order.
    """

    def __init__(self, batches: Sequence[int], lengths: Sequence[int], max_tokens: int = 0) -> None:
        for name, sizes in (("batch sizes", batches), ("lengths", lengths)):
            if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
                raise ValueError(f"{name} must be rising whole numbers from 1 up, got {list(sizes)}")
        self.batches = tuple(batches)
        self.lengths = tuple(lengths)
        self.max_tokens = max_tokens

    def within(self, max_tokens: int) -> Ladder:
        """Without the buckets that no batch of at most so many tokens comes to; 0 leaves none out."""
        fewer = Ladder(self.batches, self.lengths, max_tokens)
        return fewer if max_tokens and len(fewer) < len(self) else self

    def is_for(self, bucket: Bucket, max_tokens: int) -> bool:
        """Whether a batch of at most `max_tokens` comes to `bucket`, which is of this ladder; a row alone always does.

        32 rows of 8,192 tokens are sixteen times what suits a GPU, and one tensor of their scores is larger than any.
        """
        least = self.least(bucket)
        return least.batch == 1 or least.tokens <= max_tokens

    @property
    def largest(self) -> Bucket:
        """Holds every bucket; with `max_tokens` it may be none itself."""
        return Bucket(self.batches[-1], self.lengths[-1])

    def fit(self, batch: int, length: int) -> Bucket:
        """The smallest bucket that holds `batch` rows of at most `length` tokens.

        Raises ValueError when none does.
        """
        at_batch = bisect_left(self.batches, batch)
        at_length = bisect_left(self.lengths, length)
        if at_batch == len(self.batches) or at_length == len(self.lengths):
            raise ValueError(f"no bucket holds {batch} rows of {length} tokens; the largest is {self.largest}")
        found = Bucket(self.batches[at_batch], self.lengths[at_length])
        if self.max_tokens and not self.is_for(found, self.max_tokens):
            raise ValueError(f"no bucket holds {batch} rows of {length} tokens, only up to {self.max_tokens} tokens")
        return found

    def least(self, bucket: Bucket) -> Bucket:
        """The fewest rows, and the shortest, that `fit` gives `bucket`, which is of this ladder."""
        batch = max((size for size in self.batches if size < bucket.batch), default=0) + 1
        return Bucket(batch, max((size for size in self.lengths if size < bucket.length), default=0) + 1)

    @cached_property
    def _buckets(self) -> tuple[Bucket, ...]:
        grid = (Bucket(batch, length) for batch in self.batches for length in self.lengths)
        return tuple(one for one in grid if not self.max_tokens or self.is_for(one, self.max_tokens))

    def __len__(self) -> int:
        return len(self._buckets)

    @overload
    def __getitem__(self, index: int) -> Bucket: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Bucket]: ...
    def __getitem__(self, index: int | slice) -> Bucket | Sequence[Bucket]:
        return self._buckets[index]

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._buckets)

    def __repr__(self) -> str:
        return f"Ladder(batches={self.batches}, lengths={self.lengths}, max_tokens={self.max_tokens})"


def rungs(maximum: int, step: int) -> tuple[int, ...]:
    """Sizes from `step` up in steps of `step`, closed by `maximum` itself."""
    return (*range(step, maximum, step), maximum)
