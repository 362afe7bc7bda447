"""Standard output and error that hold nobody up. Rule: imports next to nothing, as fork.py.

A pipe holds 64 kB. Behind a reader that hangs the next line waits for ever, and with it the event loop, the heartbeat
and every job; and the SDK, which prints between taking jobs and handing them on, loses them to a pipe that is closed or
a disk that is full. Here a line waits a second at most. Those left out are counted, and the next one that goes out says
so.
"""

from __future__ import annotations

import io
import os
import select
import sys
from _thread import RLock  # threading's own, without the rest of it
from typing import Any

_PATIENCE_S = 1.0
_PIECE = select.PIPE_BUF  # bytes for which a pipe that is ready has room


class Patient(io.RawIOBase):
    """The file descriptor `number`, to which a write neither fails nor takes longer than a second."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._patience_s = _PATIENCE_S
        self._left_out = 0
        self._lock = RLock()

    def fileno(self) -> int:
        """The descriptor."""
        return self._number

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._number)

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Write `data` or leave it out; its length."""
        content = bytes(data)
        line = f"({self._left_out} lines before this one could not be written)\n".encode() if self._left_out else b""
        # Long lines take several writes. Not for ever: a process forked meanwhile would wait for a thread it has not.
        is_mine = self._lock.acquire(timeout=self._patience_s)
        try:
            written = self._write(line + content)
        except OSError:  # a full disk, a reader that has gone
            written = False
        finally:
            if is_mine:
                self._lock.release()
        self._left_out = 0 if written else self._left_out + 1
        return len(content)

    def _write(self, content: bytes) -> bool:
        while content:
            # Not select.poll, which two threads, or a signal's handler, cannot wait on at once.
            if not select.select([], [self._number], [], self._patience_s)[1]:
                self._patience_s = 0  # nobody is waited for twice
                return False
            content = content[os.write(self._number, content[:_PIECE]) :]
        self._patience_s = _PATIENCE_S
        return True


def install() -> None:
    """Put them in the place of the interpreter's own, which are still whole; a test's are left alone."""
    for name, own, number in (("stdout", sys.__stdout__, 1), ("stderr", sys.__stderr__, 2)):
        if own is not None and getattr(sys, name) is own:
            # Nothing buffers in between: where a signal comes while a line is on its way, and its handler prints as the
            # SDK's does, io.BufferedWriter raises "reentrant call", and the handler ends before it stops the worker.
            raw: Any = Patient(number)
            setattr(sys, name, io.TextIOWrapper(raw, own.encoding, "backslashreplace", line_buffering=True))
