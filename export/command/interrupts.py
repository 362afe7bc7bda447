"""Ctrl-C, and what a CI sends instead: the export ends at once, and takes its folder with it, until that is a bundle.

A KeyboardInterrupt may come up inside a library that catches everything, so that it is also noted here and looked for
between the stages.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_came = False


def hold() -> None:
    """Note the signals that end a program until `install`: while modules are imported nobody could answer one."""
    _handle(note)


def install() -> None:
    """Make the signals that end a program a KeyboardInterrupt; for the main thread of a process of our own.

    Those that whoever started it has it ignore stay ignored: nohup does so with SIGHUP, a shell without job control
    with SIGINT for what it runs in the background.
    """
    _handle(_interrupt)


def _handle(handler: Callable[[int, object], None]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def note(signum: int, frame: object) -> None:
    """A signal's handler: `came` says so from now on, and `check` raises."""
    global _came
    _came = True


def _interrupt(signum: int, frame: object) -> None:
    note(signum, frame)
    raise KeyboardInterrupt


def ignore() -> None:
    """Let none of them end what is as good as done; those that others answer they go on answering."""
    for number in SIGNALS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_IGN)


def came() -> bool:
    """Whether one of the signals has come."""
    return _came


def check() -> None:
    """Raise KeyboardInterrupt if one of the signals has come."""
    if _came:
        raise KeyboardInterrupt
