"""Where the boot's time went, from the start of the process on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from engine.uptime import uptime_s


class Timeline:
    """Durations of named stages in milliseconds. Stages may overlap: some run in threads."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {"interpreter": round(uptime_s() * 1e3, 1)}
        self._start = time.perf_counter() - self.stages["interpreter"] / 1e3

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record how long the block takes."""
        begin = time.perf_counter()
        yield
        self.stages[name] = round((time.perf_counter() - begin) * 1e3, 1)

    def mark(self, name: str) -> None:
        """Record when, since the start of the process, `name` happened; the first time only."""
        self.stages.setdefault(name, round((time.perf_counter() - self._start) * 1e3, 1))

    @property
    def uptime_s(self) -> float:
        """Seconds since the start of the process."""
        return round(time.perf_counter() - self._start, 3)
