"""Ctrl-C, and what a CI sends instead: the export ends at once, and takes its folder with it, until that is a bundle.

A KeyboardInterrupt may come up inside a library that catches everything, so that it is also noted here and looked for
between the stages.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
    if not isinstance(sys.exception(), KeyboardInterrupt):  # a second one would cut short what cleans up for the first
        raise KeyboardInterrupt


@contextmanager
def held() -> Iterator[None]:
    """Only note the signals while the block runs; `check` behind it raises. One that is ignored stays so.

    Nothing but a flag is set: a second signal comes while the handler of the first one runs.
    """
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None):  # None: not Python's
                    before[number] = handler
                    signal.signal(number, note)
        yield
    finally:
        for deferred, handler in before.items():
            signal.signal(deferred, handler)


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
