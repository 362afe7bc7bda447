"""Which signals end a worker, how early, and from when on none does. Rule: imports next to nothing, as fork.py."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PLAIN = (signal.SIG_DFL, signal.default_int_handler)
IS_REALTIME = os.environ.get("RUNPOD_REALTIME_PORT", "").strip() not in ("", "0")
"""Whether the SDK's own loop serves over HTTP."""
# In the SDK's order of precedence.
IS_SERVER = "--rp_serve_api" in sys.argv or (
    (
        "RUNPOD_WEBHOOK_GET_JOB" in os.environ
        or IS_REALTIME
        or os.environ.get("WORKER_LOOP", "").strip().lower() == "http"
    )
    and not any(argument.startswith("--test_input") for argument in sys.argv)
)
"""Whether this process waits for jobs; else it has one, and to end without an answer is no success."""

_AGAIN_S = 0.1

_raises = _holds = False
_came = 0
_tells = True


def ending_signals() -> list[signal.Signals]:
    """SIGTERM, SIGINT, and SIGHUP unless the worker was started to outlive that one (nohup)."""
    outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in _ENDING if not (outlives and number == signal.SIGHUP)]


def end_at_once() -> None:
    """Let each of them end this process with a line, until the job loop or the SDK listens for it.

    As process 1 of a container it would hear of none that it has no handler for.
    """
    for number in _ENDING:
        if signal.getsignal(number) in _PLAIN:  # not ignored, as Ctrl-C in a shell's background
            signal.signal(number, _end)


def end_plainly() -> None:
    """Give them back what they do to an ordinary process: for one whose end another one tells, or nobody has to."""
    global _tells
    _tells = False
    for number in ending_signals():
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def cleaning_up(clean_up: Callable[[], None]) -> Iterator[None]:
    """Run `clean_up` after the block, also where one of them ends it, by KeyboardInterrupt; then the process ends.

    For what imports nothing: a module that is being imported may swallow an exception, or turn it into pages of others.
    """
    import threading

    if threading.current_thread() is not threading.main_thread():  # which no signal interrupts
        try:
            yield
        finally:
            clean_up()
        return
    global _raises, _holds
    plain = [number for number in ending_signals() if signal.getsignal(number) is signal.SIG_DFL]
    _raises = True
    for number in plain:
        signal.signal(number, _end)
    try:
        try:
            yield
        finally:
            _raises, _holds = False, True
    finally:  # also where one came in the line above
        clean_up()
        _raises = _holds = False
        if _came:
            _leave(_came)
        for number in plain:
            signal.signal(number, signal.SIG_DFL)


def clean_up_soon() -> None:
    """Let the main thread, where it is in a block of `cleaning_up`, clean up and end the process; for another thread.

    A signal to the process may be taken by any thread, while the main one goes on waiting for the network.
    """
    import threading

    while _raises:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(_AGAIN_S)


def _end(signum: int, frame: FrameType | None) -> None:
    global _raises, _holds, _came
    if _raises or _holds:
        _came = _came or signum
        if _raises:  # once: an exception that comes while another one is on its way may cut that way short
            _raises, _holds = False, True
            raise KeyboardInterrupt
        return
    listener = signal.getsignal(signal.SIGTERM)
    if signum == signal.SIGHUP and callable(listener) and listener is not _end:
        listener(signum, frame)  # the SDK listens for all but this one
        return
    # Nothing is raised: see `cleaning_up`.
    _leave(signum)


def _leave(signum: int) -> None:
    try:
        if _tells and select.select([], [1], [], 1.0)[1]:  # a pipe whose reader hangs is not waited for
            os.write(1, b"INFO  | interrupted\n" if signum == signal.SIGINT else b"INFO  | told to stop\n")
    finally:
        os._exit(0 if signum != signal.SIGINT and IS_SERVER else 128 + signum)


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
