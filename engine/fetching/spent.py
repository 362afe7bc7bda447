"""What the URLs of one job have cost, and whether it is still waited for.

A file of its own, for every job has one, and few have media.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from engine.errors import InvalidInput

if TYPE_CHECKING:
    from engine.config import Limits

_MOST_KEPT = 32_000_000  # bytes


class Spent:
    """What the URLs of one job have cost so far, whichever of its parts and threads fetched them; and its end."""

    def __init__(self) -> None:
        self.bytes = 0
        self.seconds = 0.0
        self._kept = 0
        self._is_stopped = False
        self._lock = threading.Lock()

    def add(self, count: int, seconds: float) -> None:
        """A URL brought `count` bytes in `seconds`."""
        with self._lock:
            self.bytes += count
            self.seconds += seconds

    def may_keep(self, count: int) -> bool:
        """Whether `count` bytes more of what the job brought may stay, for the rows that may be made of them again."""
        with self._lock:
            fits = self._kept + count <= _MOST_KEPT
            self._kept += count if fits else 0
        return fits

    def stop(self) -> None:
        """Nobody waits for this job any more: its threads fetch and tokenise nothing further."""
        self._is_stopped = True

    def refuse_stopped(self) -> None:
        """Raise InvalidInput, which nobody hears any more, where the job was stopped."""
        if self._is_stopped:
            raise InvalidInput("the job was stopped")

    def check(self, field: str, limits: Limits) -> None:
        """Raise InvalidInput where a job may fetch no more; the few URLs that are under way may still exceed that."""
        fix = "split the job"
        if self._is_stopped:
            raise InvalidInput(f"`{field}` is not fetched any more: the job was stopped")
        if self.bytes >= limits.max_fetch_bytes:
            raise InvalidInput(
                f"`{field}`: the fetches before it brought {self.bytes} bytes, allowed in one job are "
                f"{limits.max_fetch_bytes} (MAX_FETCH_BYTES); {fix}"
            )
        if self.seconds >= limits.max_fetch_s:
            raise InvalidInput(
                f"`{field}`: the fetches before it took {self.seconds:.1f} s, allowed in one job are "
                f"{limits.max_fetch_s:g} s (MAX_FETCH_S); {fix}"
            )
