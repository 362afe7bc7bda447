"""Which rows run together. Rule: no clock, no thread, no asyncio, no arrays here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.errors import Overloaded

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A waiting row: its length in tokens and whatever the caller wants back with it."""

    item: T
    length: int


class BatchQueue(Generic[T]):
    """Waiting rows in the order of arrival, handed out in batches of similar length.

    `max_rows` and `max_tokens` bound a batch; tokens count padding, that is rows times the longest of them. A single
    row longer than `max_tokens` runs alone. `max_queued` bounds what waits. `abandoned` tells whether a row's job has
    gone; such rows are dropped when they would run.
    """

    def __init__(
        self, *, max_rows: int, max_tokens: int, max_queued: int, abandoned: Callable[[T], bool] = lambda item: False
    ) -> None:
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._max_queued = max_queued
        self._abandoned = abandoned
        self._entries: deque[Entry[T]] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, entries: Sequence[Entry[T]]) -> None:
        """Queue all `entries` or, when they do not fit, none. Raises Overloaded."""
        if len(self._entries) + len(entries) > self._max_queued:
            raise Overloaded(
                f"{len(self._entries)} rows wait, {len(entries)} more are over the limit of {self._max_queued}"
            )
        self._entries.extend(entries)

    def pop(self) -> list[Entry[T]]:
        """The next batch, longest row first; empty when nothing waits.

        The oldest row always goes, so none starves. Beside it go the rows, among the next ones, whose length is
        nearest: they cost the least padding.
        """
        window = self._window()
        if not window:
            return []
        oldest = window[0]
        ranked = sorted(window[1:], key=lambda entry: abs(entry.length - oldest.length))
        batch, longest = [oldest], oldest.length
        for entry in ranked:
            longest = max(longest, entry.length)
            if len(batch) == self._max_rows or (len(batch) + 1) * longest > self._max_tokens:
                break
            batch.append(entry)
        taken = {id(entry) for entry in batch}
        for entry in reversed(window):
            if id(entry) not in taken:
                self._entries.appendleft(entry)
        return sorted(batch, key=lambda entry: -entry.length)

    def _window(self) -> list[Entry[T]]:
        """Take out the next rows that may share a batch: a few batches' worth is enough to find near lengths."""
        window: list[Entry[T]] = []
        while self._entries and len(window) < 8 * self._max_rows:
            entry = self._entries.popleft()
            if not self._abandoned(entry.item):
                window.append(entry)
        return window

    def drain(self) -> list[Entry[T]]:
        """Take everything out."""
        entries = list(self._entries)
        self._entries.clear()
        return entries
