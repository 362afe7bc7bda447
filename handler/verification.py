"""The bundle's files, hashed by a process of their own.

Not by a thread: it would wait for the interpreter lock, up to 5 ms each time, after every piece that it has read while
modules load; and hashing a mapped file in one call takes a third more CPU time than reading it in pieces.
"""

from __future__ import annotations

import marshal
import os
import select
import socket
import time
from contextlib import suppress

from engine.bundle import Bundle
from engine.errors import BundleError
from handler.fork import end_with, fork


class Verification:
    """Begins at once. To be made before CUDA exists, which does not survive a fork."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._pid = 0
        with suppress(OSError):  # there is no other process to be had
            self._pid, self._end = fork(self._serve)

    @property
    def is_over(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return bool(self._pid) and bool(select.select([self._end], [], [], 0)[0])

    def result(self) -> float:
        """Wait until every file was compared with the manifest; ms that it took. Raises BundleError as `verify` does.

        What the other process did not tell, because it could not be had or was killed, is found out here.
        """
        told = self._told() if self._pid else b""
        if not told:
            return _verify(self._bundle)
        took_ms, why = marshal.loads(told)  # noqa: S302 - from our own fork
        if why:
            raise BundleError(why)
        return float(took_ms)

    def _told(self) -> bytes:
        with self._end:
            told = b"".join(iter(lambda: self._end.recv(65536), b""))
        with suppress(ChildProcessError):  # whoever started us ignores SIGCHLD
            os.waitpid(self._pid, 0)
        return told

    def _serve(self, end: socket.socket) -> None:
        # Else whoever listens to the process that forked would not hear of its end.
        os.closerange(3, end.fileno())
        os.closerange(end.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        end_with(end)
        took_ms, why = 0.0, ""
        try:
            took_ms = _verify(self._bundle)
        except BundleError as error:
            why = str(error)
        end.sendall(marshal.dumps((took_ms, why)))


def _verify(bundle: Bundle) -> float:
    begin = time.perf_counter()
    bundle.verify()
    return round((time.perf_counter() - begin) * 1e3, 1)
