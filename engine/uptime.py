"""How long this process has run. Rule: imports next to nothing, for whatever starts asks it first."""

from __future__ import annotations

import time
from pathlib import Path


def uptime_s() -> float:
    """Seconds since the kernel started this process, whose clock ticks every 10 ms; 0 where it does not tell.

    Field 22 of /proc/self/stat is the start in ticks since boot (man 5 proc_pid_stat).
    """
    try:
        stat = Path("/proc/self/stat").read_text()
        started = int(stat.rpartition(")")[2].split()[19]) / 100  # USER_HZ is 100 on every Linux that CUDA runs on
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError):
        return 0.0
