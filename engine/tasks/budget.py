"""What the rows of all jobs, and their outputs, hold at once: MAX_ROW_BYTES bounds one job, and there are many.

Rule: a job that no other is in the way of gets all that it may have.
"""

from __future__ import annotations

import threading
from typing import Self

from engine.errors import Overloaded
from engine.probe import memory_limit


class Budget:
    """At most `most` bytes for all jobs of a process, of which each takes a `Share`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self.lock = threading.Lock()


OF_PROCESS = Budget(memory_limit() // 2)
"""The other half is for what jobs are before they are rows and after that, the engine, and Python."""


class Share:
    """What one job, or one part of a stream, holds of a budget while it is entered; otherwise nothing is counted."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes; after the job those that it held."""
        self._budget = OF_PROCESS
        self._is_open = False

    def __enter__(self) -> Self:
        self.size, self._is_open = 0, True
        return self

    def __exit__(self, *_: object) -> None:
        with self._budget.lock:
            self._is_open = False
            self._budget.held -= self.size

    def reach(self, size: int) -> None:
        """Hold `size` bytes in all. Raises Overloaded where other jobs hold so much that these do not fit.

        A thread of a job that has ended is not told: there is nobody who would give back what it asks for.
        """
        with self._budget.lock:
            if not self._is_open or size <= self.size:
                return
            others = self._budget.held - self.size
            if others and others + size > self._budget.most:
                raise Overloaded(
                    "the rows of other jobs hold the memory that this one needs; send it later, or split it"
                )
            self._budget.held, self.size = others + size, size
