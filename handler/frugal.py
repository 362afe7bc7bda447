"""What the engine's process does without."""

from __future__ import annotations

import os
from contextlib import suppress

_M_ARENA_MAX = -8  # malloc.h


def be_frugal() -> None:
    """To be called before numpy is imported; what the environment says otherwise holds.

    numpy's OpenBLAS gets no threads: it would spin on other CPUs while it is imported. All threads allocate from one
    arena: with one each, a worker on the CPU holds 6 MB more, and no client is answered sooner.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if "MALLOC_ARENA_MAX" not in os.environ:
        import ctypes  # as numpy does

        with suppress(AttributeError, OSError):  # a C library that is not glibc
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
