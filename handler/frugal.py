"""What the engine's process does without."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from handler import shells

_M_ARENA_MAX = -8  # malloc.h
_SELDOM_USED = ("numpy.random", "numpy.ma", "numpy.polynomial", "numpy.fft")


def be_frugal() -> None:
    """To be called before numpy is imported; what the environment says otherwise holds.

    numpy's OpenBLAS gets no threads: it would spin on other CPUs while it is imported. What of numpy hardly a task uses
    is loaded when one does: a quarter of numpy's import, and 6 MB. All threads allocate from one arena: with one each,
    a worker on the CPU holds 6 MB more, and no client is answered sooner.
    """
    if "numpy" not in sys.modules:
        for name in _SELDOM_USED:
            shells.enter(name)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if "MALLOC_ARENA_MAX" not in os.environ:
        import ctypes  # as numpy does

        with suppress(AttributeError, OSError):  # a C library that is not glibc
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
