"""A second process for the engine. Rule: imports next to nothing, for what is imported before the fork costs both.

Why two: a worker imports an engine (numpy, ONNX Runtime, tokenizers) and the SDK with an event loop and HTTP. Both
hold the interpreter lock while they load, so threads cannot share the wait; two processes on two cores can. Afterwards
a 10 MB payload that is being parsed delays no batch, and an engine that hangs or crashes takes no job down unanswered.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from handler.processes import signals
from handler.startup.beside import Beside

_KILL_S = 2.0


def fork(serve: Callable[[socket.socket], None]) -> tuple[int, socket.socket]:
    """Run `serve` in a child process; its id and our end of the socket pair.

    To be called before CUDA exists, which does not survive a fork, and before threads that may hold a lock at that
    instant: the child would wait for it for ever. Raises OSError where there may be no further process.
    """
    ours, theirs = socket.socketpair()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # what is not written yet would be written by both
            stream.flush()
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid:
        theirs.close()
        return pid, ours
    code = 1
    try:
        ours.close()
        serve(theirs)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:  # closed before we were started
                    stream.flush()
        finally:
            os._exit(code)  # what the parent registered to run at its own exit is not ours to run


def end_with(end: socket.socket, grace_s: float = 0.0) -> None:
    """End this process `grace_s` seconds after the one at the other `end`, whatever it is busy with.

    Raises WorkerFault where there may be no further thread.
    """
    import select

    def watch() -> None:
        closed = select.poll()
        closed.register(end, 0)  # a hang-up is told all the same
        closed.poll()
        signals.clean_up_soon()
        time.sleep(grace_s)
        os._exit(1)

    Beside(watch)


def wait_for(pid: int, timeout_s: float) -> int:
    """Wait for a child that was asked to end, and kill it after `timeout_s`; its wait status, 0 when it was killed.

    One that does not end even so, in a driver that hangs, is left to the kernel.
    """
    killed, deadline = False, time.monotonic() + timeout_s
    while (ended := _ended(pid)) is None:
        if time.monotonic() > deadline:
            if killed:
                return 0
            os.kill(pid, signal.SIGKILL)
            killed, deadline = True, time.monotonic() + _KILL_S
        time.sleep(0.005)
    return 0 if killed else ended


def _ended(pid: int) -> int | None:
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # whoever started us ignores SIGCHLD, and so do we: the kernel keeps no status
        return 0
    return status if found else None
