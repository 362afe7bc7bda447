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

_PASSED, _FAILED = b".", b"!"
_NICENESS = 8  # as of what else nobody waits for yet, so that the engine has a CPU of two for itself


class Verification:
    """Begins at once. To be made before CUDA exists, which does not survive a fork.

    In two parts, so that an engine may load while its weights are hashed: they are numbers, which nobody parses, and
    no answer goes out before `result`.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._pid = 0
        with suppress(OSError):  # there is no other process to be had
            self._pid, self._end = fork(self._serve)

    @property
    def is_at_weights(self) -> bool:
        """Whether the other process has told of everything else, or ended."""
        if not self._pid:
            return False
        told = select.poll()
        told.register(self._end, select.POLLIN)
        return bool(told.poll(0))

    def has_passed_all_but_weights(self) -> bool:
        """Wait until these were compared with the manifest; whether they agree. `result` says what does not.

        What the other process does not tell, because it could not be had or was killed, is found out here.
        """
        if self._pid and (told := self._end.recv(1)):
            return told == _PASSED
        try:
            self._bundle.verify_all_but_weights()
        except BundleError:
            return False
        return True

    def result(self) -> float:
        """Wait until every file was compared, after the above; ms that it took. Raises as `Bundle.verify` does."""
        if self._pid and (took_ms := self._told()) is not None:
            return took_ms
        begin = time.perf_counter()
        self._bundle.verify()
        return _ms_since(begin)

    def _told(self) -> float | None:
        """What the other process said in the end, None where it ended without. Raises what it raised."""
        with self._end:
            told = b"".join(iter(lambda: self._end.recv(65536), b""))
        with suppress(ChildProcessError):  # whoever started us ignores SIGCHLD
            os.waitpid(self._pid, 0)
        self._pid = 0
        if not told:
            return None
        took_ms, why = marshal.loads(told)  # noqa: S302 - from our own fork
        if why:
            raise BundleError(why)
        return float(took_ms)

    def _serve(self, end: socket.socket) -> None:
        signals.ignore()  # a terminal's; this process ends with the one that began it
        _close_all_but(end.fileno())  # else whoever listens to the process that forked would not hear of its end
        begin, why, open_part = time.perf_counter(), "", _FAILED
        try:
            end_with(end)
            self._bundle.verify_all_but_weights()
            open_part = b""
            with suppress(OSError):  # it has just been killed
                end.sendall(_PASSED)
            os.nice(_NICENESS)
            self._bundle.verify_weights()
        except BundleError as error:
            why = str(error)
        except Exception:  # no thread, no memory, a defect: found out, and told, by the other process
            return
        with suppress(OSError):  # as above
            end.sendall(open_part + marshal.dumps((_ms_since(begin), why)))


def _close_all_but(kept: int) -> None:
    """Not os.closerange: where it knows no close_range(2) it asks for every number up to the limit, perhaps 10^9."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != kept:
            with suppress(OSError):  # the listing's own
                os.close(number)


def _ms_since(begin: float) -> float:
    return round((time.perf_counter() - begin) * 1e3, 1)
