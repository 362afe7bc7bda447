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
from handler import signals
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
        """Whether the other process has told, or ended."""
        if not self._pid:
            return False
        told = select.poll()
        told.register(self._end, select.POLLIN)
        return bool(told.poll(0))

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
        signals.ignore()  # a terminal's; this process ends with the one that began it
        _close_all_but(end.fileno())  # else whoever listens to the process that forked would not hear of its end
        took_ms, why = 0.0, ""
        try:
            end_with(end)
            took_ms = _verify(self._bundle)
        except BundleError as error:
            why = str(error)
        except Exception:  # no thread, no memory, a defect: found out, and told, by the other process
            return
        with suppress(OSError):  # it has just been killed
            end.sendall(marshal.dumps((took_ms, why)))


def _close_all_but(kept: int) -> None:
    """Not os.closerange: where it knows no close_range(2) it asks for every number up to the limit, perhaps 10^9."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != kept:
            with suppress(OSError):  # the listing's own
                os.close(number)


def _verify(bundle: Bundle) -> float:
    begin = time.perf_counter()
    bundle.verify()
    return round((time.perf_counter() - begin) * 1e3, 1)
