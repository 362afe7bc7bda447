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


def of_front(counts: dict[str, int], boot_ms: dict[str, float], running: int, engine_pid: int) -> dict[str, object]:
    """What this process, to which clients talk, adds to the engine's report; `running`: jobs, but those that ask."""
    try:
        memory = {"front": _resident_mb(os.getpid()), "engine": _resident_mb(engine_pid)}
    except OSError:  # so many clients that there is no file left to read it from
        memory = {}
    return {**counts, "boot_ms": boot_ms, "jobs_running": running, "memory_mb": memory, "pid": os.getpid()}


def main() -> int:
    """The exit code; prints which process is ready, or that none is."""
    pids = ready_pids()
    print(f"ready: process {pids[0]}" if pids else "no worker is ready")
    return 0 if pids else 1


def _resident_mb(pid: int) -> float:
    """Resident memory in MB (10^6 bytes); /proc/PID/statm counts pages."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _alive(comm: Path) -> bool:
    return bool(_read(comm.with_name("cmdline")))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # it ended meanwhile
        return ""


if __name__ == "__main__":
    sys.exit(main())
