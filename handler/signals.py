"""Which signals end a worker, and from when on none does. Rule: imports next to nothing, as fork.py."""

from __future__ import annotations

import signal

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def ending_signals() -> list[signal.Signals]:
    """SIGTERM, SIGINT, and SIGHUP unless the worker was started to outlive that one (nohup)."""
    outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in _ENDING if not (outlives and number == signal.SIGHUP)]


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
