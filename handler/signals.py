"""Which signals end a worker, and from when on none does. Rule: imports next to nothing, as fork.py."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_raises = False
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def ending_signals() -> list[signal.Signals]:
    """SIGTERM, SIGINT, and SIGHUP unless the worker was started to outlive that one (nohup)."""
    outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in _ENDING if not (outlives and number == signal.SIGHUP)]


def end_by_ctrl_c() -> None:
    """Let Ctrl-C end this process at once with 130, until the job loop or the SDK listens for it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in a shell's background
        signal.signal(signal.SIGINT, _interrupted)


@contextmanager
def raising() -> Iterator[None]:
    """Meanwhile Ctrl-C raises KeyboardInterrupt: for what has something to clean up, and imports nothing."""
    global _raises
    _raises = True
    try:
        yield
    finally:
        _raises = False


def _interrupted(signum: int, frame: object) -> None:
    if _raises:
        raise KeyboardInterrupt
    # Else nothing is raised: a module that is being imported may swallow it, or turn it into pages of other errors.
    try:
        if select.select([], [1], [], 1.0)[1]:  # a pipe whose reader hangs is not waited for
            os.write(1, b"INFO  | interrupted\n")
    finally:
        os._exit(130)


def hold() -> None:
    """Let them wait until `release`; what is forked meanwhile starts in the same state."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def release() -> None:
    """Let them come again, those that waited first."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def ignore() -> None:
    """Let none of them change anything any more: this process ends already, or another one decides."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
