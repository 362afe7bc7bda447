"""A second process for the engine. Rule: imports next to nothing, for what is imported before the fork costs both.

Why two: a worker imports an engine (numpy, ONNX Runtime, tokenizers) and an HTTP client (aiohttp, the SDK). Both hold
the interpreter lock while they load, so threads cannot share the wait; two processes on two cores can. Afterwards a
10 MB payload that is being parsed delays no batch, and an engine that hangs or crashes takes no job down unanswered.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable


def fork(serve: Callable[[socket.socket], None]) -> tuple[int, socket.socket]:
    """Run `serve` in a child process; its id and our end of the socket pair.

    To be called before threads or CUDA exist: neither survives a fork.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
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


def wait_for(pid: int, timeout_s: float) -> None:
    """Wait for a child that was asked to end; kill it after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.005)
