"""What the C library's heap keeps of a large job's rows, given back to the machine.

Rows are too small for a mapping of their own once something larger was freed. In the one heap that all threads share
(handler/startup/frugal.py) anything behind them keeps them there: an idle worker would hold all that its largest jobs
did.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

_LARGE = 32_000_000
"""Bytes of rows, and of outputs, of a job behind which it is worth the while."""
_PAUSE_S = 1.0


class Heap:
    """Of this process; for one event loop."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def ended(self, size: int) -> None:
        """A job has, whose rows held `size` bytes; once for those that follow one another, for theirs is used again."""
        if size <= _LARGE:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_PAUSE_S, _shrink_in_thread)


def _shrink_in_thread() -> None:
    with suppress(RuntimeError):  # the loop ends, or there is no further thread
        asyncio.get_running_loop().run_in_executor(None, shrink)


def shrink() -> None:
    """Give back all pages on which nothing lies. Takes a while, in which no other thread gets memory."""
    import ctypes  # as numpy does

    with suppress(AttributeError, OSError):  # a C library that is not glibc
        ctypes.CDLL(None).malloc_trim(0)
