"""Which of an engine's lanes may run next. Rule: no clock, no thread, no asyncio, no arrays here.

An engine on the CPU runs one batch with all of its threads, or several side by side with one thread each. Together is
what answers a lone row first. Side by side answers more rows a second, as no thread waits for another one at the end of
every operator: on two cores, beside the processes that bring the jobs, 4 clients got 1.2 times as many answers in fp32
and in int8, 8 clients 1.2 and 1.4 times, 32 clients 1.2 and 1.3 times.
"""

from __future__ import annotations

TOGETHER = 0
"""The lane of the engine itself, on all its threads. Lanes 1, 2, ... are the others."""


class Lanes:
    """Who runs, and who may run beside it: either lane TOGETHER alone, or any of the `count` others.

    Until `open` is called there is only lane TOGETHER.
    """

    def __init__(self) -> None:
        self.count = 0
        """Lanes beside TOGETHER."""
        self._running: dict[int, int] = {}  # lane -> its rows

    def open(self, count: int) -> None:
        """There are `count` lanes now that run side by side."""
        self.count = count

    def share(self, lane: int, waiting: int) -> int:
        """Rows that `lane` should take of the `waiting` ones; 0 when it is not its turn."""
        if lane == TOGETHER:
            return 0 if self._running or self._side_by_side(waiting) else waiting
        free = self.free(waiting)
        return -(-waiting // free) if free and lane not in self._running else 0

    def free(self, waiting: int) -> int:
        """How many lanes beside TOGETHER may begin when `waiting` rows wait."""
        if TOGETHER in self._running or not self._side_by_side(waiting):
            return 0
        return self.count - len(self._running)

    def begin(self, lane: int, rows: int) -> None:
        """`lane` has taken `rows` rows."""
        self._running[lane] = rows

    def end(self, lane: int) -> None:
        """`lane` is free, whether it was or not."""
        self._running.pop(lane, None)

    def _side_by_side(self, waiting: int) -> bool:
        """Whether there are as many rows as lanes, those that run included: else some CPUs would have nothing to do."""
        return 0 < self.count <= waiting + sum(self._running.values())
