"""Where the boot's time went, from the start of the process on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Timeline:
    """Durations of named stages in milliseconds. Stages may overlap: some run in threads."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {"interpreter": _age_ms()}
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


def _age_ms() -> float:
    """Milliseconds since the kernel started this process; its clock ticks every 10 ms.

    Field 22 of /proc/self/stat is the start in ticks since boot (man 5 proc_pid_stat).
    """
    try:
        stat = Path("/proc/self/stat").read_text()
        started = int(stat.rpartition(")")[2].split()[19]) / 100  # USER_HZ is 100 on every Linux that CUDA runs on
        return round((time.clock_gettime(time.CLOCK_BOOTTIME) - started) * 1e3, 1)
    except (OSError, ValueError, IndexError):
        return 0.0
