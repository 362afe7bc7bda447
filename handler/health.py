"""`python -m handler.health`: exit code 0 when a worker on this machine is ready, else 1. The image's HEALTHCHECK.

A queue worker listens on no port and may have nowhere to write, so it says what it is in the name of its process, which
also `ps` shows. The name goes when the process does. Rule: imports next to nothing, for it runs every few seconds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

READY = "worker: ready"  # the kernel keeps 15 characters


def mark_ready(proc: Path = Path("/proc")) -> None:
    """Name this process READY. Best effort: a system without /proc has no health check."""
    try:
        (proc / "self" / "comm").write_text(READY)
    except OSError:
        pass


def ready_pids(proc: Path = Path("/proc")) -> list[int]:
    """The processes that call themselves READY; one that has ended but is not reaped yet has no command line."""
    return [int(entry.parent.name) for entry in proc.glob("[0-9]*/comm") if _read(entry) == READY and _alive(entry)]


def resident_mb(pid: int) -> float:
    """Resident memory in MB (10^6 bytes); /proc/PID/statm counts pages."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def main() -> int:
    """The exit code; prints which process is ready, or that none is."""
    pids = ready_pids()
    print(f"ready: process {pids[0]}" if pids else "no worker is ready")
    return 0 if pids else 1


def _alive(comm: Path) -> bool:
    return bool(_read(comm.with_name("cmdline")))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # it ended meanwhile
        return ""


if __name__ == "__main__":
    sys.exit(main())
