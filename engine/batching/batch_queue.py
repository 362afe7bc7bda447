"""Which rows run together. Rule: no clock, no thread, no asyncio, no arrays here; the time is passed in, in seconds."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from itertools import islice
from typing import Generic, TypeVar

from engine.errors import InvalidInput, Overloaded

J = TypeVar("J", bound=Hashable)
R = TypeVar("R")


class _Job(Generic[R]):
    """A job's waiting rows by length, rows of equal length in their order."""

    def __init__(self, arrived: float) -> None:
        self.arrived = arrived
        self.lengths: list[int] = []  # the keys of `rows`, sorted
        self.rows: dict[int, deque[R]] = {}

    def add(self, row: R, length: int) -> None:
        if length not in self.rows:
            self.rows[length] = deque()
            insort(self.lengths, length)
        self.rows[length].append(row)

    def remove_first(self, length: int) -> R:
        rows = self.rows[length]
        row = rows.popleft()
        if not rows:
            del self.rows[length]
            del self.lengths[bisect_left(self.lengths, length)]
        return row

    def nearest(self, length: int) -> Iterator[int]:
        """The lengths present, nearest to `length` first; the last one given may be used up meanwhile."""
        lengths = self.lengths
        below = above = bisect_left(lengths, length)  # what lies between these was given
        while below or above < len(lengths):
            if above == len(lengths) or (below and length - lengths[below - 1] <= lengths[above] - length):
                below -= 1
                given = lengths[below]
            else:
                given = lengths[above]
                above += 1
            yield given
            if given not in self.rows:  # nor in `lengths`
                above -= 1


class _Batch(Generic[J, R]):
    """A batch that grows while it pays."""

    def __init__(self, longest: int, max_rows: int, max_tokens: int, overhead_tokens: int) -> None:
        self._longest = longest
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._overhead_tokens = overhead_tokens
        self.rows: list[tuple[J, R]] = []

    @property
    def is_full(self) -> bool:
        """Whether not even one more row of the shortest length fits."""
        count = len(self.rows)
        return count >= self._max_rows or (count + 1) * self._longest > self._max_tokens

    def takes(self, length: int) -> bool:
        """Whether one more row of `length` tokens fits, and is cheaper inside than in a run of its own.

        Inside, it costs the padding that it gets, or that it makes the others get; alone, the overhead of a run.
        """
        count, longest = len(self.rows), max(self._longest, length)
        if not count:
            return True  # a row longer than the whole budget runs alone
        if count == self._max_rows or (count + 1) * longest > self._max_tokens:
            return False
        padding = (longest - length) + count * (longest - self._longest)
        return padding <= self._overhead_tokens

    def add(self, job: J, row: R, length: int) -> None:
        self.rows.append((job, row))
        self._longest = max(self._longest, length)


class BatchQueue(Generic[J, R]):
    """Waiting rows of several jobs, handed out in batches of similar length.

    `max_rows` and `max_tokens` bound a batch; tokens count padding, that is rows times the longest of them.
    `max_queued` bounds the rows that wait. `overhead_tokens` is what a run costs beside its tokens, in tokens.
    `max_delay_s` lets a batch that is not full wait for company.

    Jobs take turns: every batch starts with the longest row of the job whose turn it is, so that with n jobs waiting
    each is served at least once in n batches, however large the others are. Beside it go rows of near length, of all
    jobs in equal shares first.
    """

    def __init__(
        self, *, max_rows: int, max_tokens: int, max_queued: int, overhead_tokens: int, max_delay_s: float = 0.0
    ) -> None:
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self.max_queued = max_queued
        self.overhead_tokens = overhead_tokens
        self._max_delay_s = max_delay_s
        self._jobs: dict[J, _Job[R]] = {}  # in the order of their turns
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, job: J, rows: Sequence[tuple[R, int]], now: float) -> None:
        """Queue all `rows` of `job`, each with its length in tokens, or, when they do not fit, none.

        Raises Overloaded, or InvalidInput for more rows than can ever wait.
        """
        if len(rows) > self.max_queued:
            raise InvalidInput(f"the job makes {len(rows)} rows, allowed are {self.max_queued} (MAX_QUEUED_ROWS)")
        if self._size + len(rows) > self.max_queued:
            raise Overloaded(
                f"{self._size} rows wait, {len(rows)} more are over the limit of {self.max_queued} (MAX_QUEUED_ROWS)"
            )
        waiting = self._jobs.setdefault(job, _Job(now))
        for row, length in rows:
            waiting.add(row, length)
        self._size += len(rows)

    def cancel(self, job: J) -> int:
        """Drop what waits of `job`; how many rows that were."""
        waiting = self._jobs.pop(job, None)
        dropped = sum(map(len, waiting.rows.values())) if waiting else 0
        self._size -= dropped
        return dropped

    def due_in(self, now: float, tokens: int | None = None) -> float | None:
        """Seconds until `pop` has a batch; 0 when it has one, None when nothing waits. `tokens` as for `pop`."""
        if not self._size:
            return None
        if not self._max_delay_s or self._size >= self.max_rows or self._fills(self._most(tokens)):
            return 0.0
        return max(0.0, min(job.arrived for job in self._jobs.values()) + self._max_delay_s - now)

    def pop(self, now: float, rows: int | None = None, tokens: int | None = None) -> list[tuple[J, R]]:
        """The next batch as (job, row) pairs; empty while nothing is due.

        `rows` and `tokens` may bound it further, tokens as `max_tokens` does.
        """
        if self.due_in(now, tokens) != 0.0:
            return []
        max_rows, max_tokens = self.max_rows if rows is None else min(rows, self.max_rows), self._most(tokens)
        first = next(iter(self._jobs))
        longest = self._jobs[first].lengths[-1]
        batch: _Batch[J, R] = _Batch(longest, max_rows, max_tokens, self.overhead_tokens)
        self._move(first, longest, batch)
        share = max(1, max_rows // len(self._jobs)) if self._jobs else 0
        for limit in (share, max_rows):
            for job in list(self._jobs):
                if batch.is_full:  # all of this is done with a lock held which the event loop asks for
                    break
                self._fill(batch, job, longest, limit)
        if first in self._jobs:
            self._jobs[first] = self._jobs.pop(first)  # to the end: the others' turn
        return batch.rows

    def _most(self, tokens: int | None) -> int:
        return self.max_tokens if tokens is None else min(tokens, self.max_tokens)

    def _fills(self, max_tokens: int) -> bool:
        """Whether what waits makes the next batch a full one, rows that are longer than its first aside."""
        longest = next(iter(self._jobs.values())).lengths[-1]
        missing = min(self.max_rows, max_tokens // max(1, longest))
        for job in self._jobs.values():
            near = bisect_left(job.lengths, longest - self.overhead_tokens), bisect_right(job.lengths, longest)
            for length in islice(job.lengths, *near):
                missing -= len(job.rows[length])
                if missing <= 0:
                    return True
        return False

    def _fill(self, batch: _Batch[J, R], job: J, longest: int, limit: int) -> None:
        """Move up to `limit` rows of `job` into `batch`, nearest lengths first."""
        waiting = self._jobs[job]
        for length in waiting.nearest(longest):
            if not limit or batch.is_full or abs(length - longest) > self.overhead_tokens:
                return
            while limit and length in waiting.rows and batch.takes(length):
                self._move(job, length, batch)
                limit -= 1

    def _move(self, job: J, length: int, batch: _Batch[J, R]) -> None:
        waiting = self._jobs[job]
        batch.add(job, waiting.remove_first(length), length)
        self._size -= 1
        if not waiting.rows:
            del self._jobs[job]

    def drain(self) -> list[J]:
        """Drop everything; the jobs that waited."""
        jobs = list(self._jobs)
        self._jobs.clear()
        self._size = 0
        return jobs
