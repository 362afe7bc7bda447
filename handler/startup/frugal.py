"""What a boot does without. Rule: imports next to nothing, for it runs before everything else."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from handler.startup import shells

_M_ARENA_MAX = -8  # malloc.h
_STANDARD = ("ast", "inspect", "ipaddress", "pickle", "textwrap")
"""Other modules import them for what few of their callers use."""
_SELDOM_USED = ("numpy.random", "numpy.ma", "numpy.polynomial", "numpy.fft")
_NEVER_USED = ("numpy.core._add_newdocs", "numpy.core._add_newdocs_scalars")
"""Docstrings."""
_FOR_TLS = ("ssl", "asyncio.sslproto")
"""asyncio imports them, and only a task that fetches by https uses them."""


def import_less() -> None:
    """To be called first of all: the standard library's part of what no boot uses is loaded when somebody does."""
    for name in _STANDARD:
        shells.enter(name)


def import_no_client() -> None:
    """To be called before `aiohttp.web` is imported: aiohttp's client, half of that, is loaded when somebody asks."""
    if "aiohttp" in sys.modules or not shells.enter("aiohttp"):
        return
    version = shells.version_of("aiohttp")
    if version is not None:
        sys.modules["aiohttp"].__version__ = version  # type: ignore[attr-defined] # its server says it in each reply


def be_frugal() -> None:
    """To be called before numpy is imported; what the environment says otherwise holds.

    numpy's OpenBLAS gets no threads: it would spin on other CPUs while it is imported. What of numpy hardly a task uses
    is loaded when one does, a quarter of numpy's import, and 6 MB; and so is TLS. All threads allocate from one arena:
    with one each, a worker on the CPU holds 6 MB more, and no client is answered sooner.
    """
    if "numpy" not in sys.modules:
        for name in (*_SELDOM_USED, *_NEVER_USED):
            shells.enter(name)
    for name in _FOR_TLS:
        shells.enter(name)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if "MALLOC_ARENA_MAX" not in os.environ:
        import ctypes  # as numpy does

        with suppress(AttributeError, OSError):  # a C library that is not glibc
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
