"""Workers that share a volume: one at a time, and what those that were killed left there.

A lock counts among the workers of one machine, whose kernel keeps it; whether it does on another machine is the file
system's affair. So whoever holds it removes what was made on this machine at once, and the rest when nobody has written
to it for long.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_CHECK_S = 0.2
_ABANDONED_S = 900.0  # a fetch that hears nothing is given up much sooner


@contextmanager
def turn(path: Path, deadline: float, waits: Callable[[], object], late: Exception) -> Iterator[bool]:
    """Hold the lock on the file `path` for the block; whether it is held, for some volumes know no locks.

    Calls `waits` once where another holds it. Raises `late` when one does at `deadline` (of time.monotonic), OSError
    where there is no such file and none can be made.
    """
    file, told = _opened(path), False
    try:
        while (is_held := _try_lock(file)) is None:
            if time.monotonic() >= deadline:
                raise late
            if not told:
                waits()
                told = True
            time.sleep(_CHECK_S)
        yield is_held
    finally:
        if file is not None:
            os.close(file)


def _opened(path: Path) -> int | None:
    """For workers of every user: a pod's root may have made it. None where it may not even be read."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except PermissionError:
            return None
    with suppress(OSError):
        os.fchmod(file, 0o666)  # whatever the umask is
    return file


def _try_lock(file: int | None) -> bool | None:
    """Whether there is a lock now; None where another worker has it."""
    if file is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return None
    except OSError:
        return False
    return True


def mark() -> str:
    """For the name of what is not whole yet: says which machine makes it, and differs every time."""
    return f"{_machine()}-{os.urandom(4).hex()}"


def is_abandoned(path: Path, is_held: bool) -> bool:
    """Whether nobody works any more on the file or folder `path`, whose name has a `mark`.

    `is_held`: that the lock is ours under which such are made.
    """
    if is_held and f"{_machine()}-" in path.name:
        return True
    try:
        written = max(one.lstat().st_mtime for one in (path, *path.rglob("*")))
    except OSError:  # another worker removes it
        return False
    return time.time() - written > _ABANDONED_S


@cache
def _machine() -> str:
    """The same in all containers of a machine until it starts again."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return os.urandom(4).hex()
