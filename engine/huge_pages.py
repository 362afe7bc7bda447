"""Pages of 2 MB where an engine on the CPU computes: asked for ahead of use, or made of what is in use.

Most machines give them to those who ask and to nobody else (/sys/kernel/mm/transparent_hugepage/enabled: madvise), and
neither the C library nor ONNX Runtime asks. On a virtual machine with two CPUs and all-MiniLM-L6-v2, in turns with what
does without: those of the arena gave 32 clients in int8 3 to 7 % more answers, those of weights and the rest 5 % more,
and a client that is alone 5 % in fp32 and 7 % in int8; a job that found the worker idle was answered 2 to 17 % sooner.
The worker held up to 5 MB more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

HUGE_PAGE = 2 << 20
"""Bytes, on x86-64; on ARM64 with pages of 4 kB as well."""

_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # mman-common.h
_PROTECTION, _FIELDS_OF_NO_FILE = "rw-p", 5  # proc_pid_maps(5)
_HEAP = "[heap]"
_SMALL_PAGE = os.sysconf("SC_PAGE_SIZE")
_USED = 7 / 8  # of a large page: what it holds beside that is held for nothing


def ask(least: int) -> int:
    """Ask for what memory of `least` bytes or more this process has in one piece and of no file; the bytes of it.

    For memory that is there and not used yet. 0 where that cannot be asked: not on Linux, in a sandbox, or without a C
    library of its own.
    """
    asked = 0
    with suppress(OSError, AttributeError, ValueError):
        advise = _library().madvise
        for begin, end in _own_memory(least):
            if not advise(begin, end - begin, _MADV_HUGEPAGE):
                asked += end - begin
    return asked


def collapse() -> int:
    """Put what this process uses and has in small pages into large ones; the bytes of it.

    For what was made without asking: ONNX Runtime packs weights into memory that is not its arena's. Took 0.8 to 6 ms
    a page, for which whoever uses that page waits; other threads go on. Where the kernel cannot do that at once, which
    Linux does from 6.1 on, it is asked to do it when it finds time. 0 where `ask` returns 0.
    """
    put = 0
    with suppress(OSError, AttributeError, ValueError):
        library = _library()
        for begin, end in _own_memory(HUGE_PAGE, _HEAP):
            for first, last in used(begin, end, lambda at, size: _resident(library, at, size)):
                size = last - first
                if any(not library.madvise(first, size, how) for how in (_MADV_COLLAPSE, _MADV_HUGEPAGE)):
                    put += size
    return put


def anonymous(maps: Iterable[str], least: int, named: str = "") -> Iterator[tuple[int, int]]:
    """Where memory begins and ends that is private, writable, of no file, and of `least` bytes or more.

    `maps` are lines as in proc_pid_maps(5). The main stack and whatever else has a name are left out, but for `named`.
    """
    for line in maps:
        fields = line.split()
        if fields[1] == _PROTECTION and (len(fields) == _FIELDS_OF_NO_FILE or fields[-1] == named):
            begin, end = (int(address, 16) for address in fields[0].split("-"))
            if end - begin >= least:
                yield begin, end


def used(begin: int, end: int, resident: Callable[[int, int], bytes]) -> Iterator[tuple[int, int]]:
    """The large pages from `begin` to `end` of which nearly all is used; neighbours as one.

    `resident(at, size)` tells, a byte for each small page, which of them are there: 1, or 0.
    """
    small = HUGE_PAGE // _SMALL_PAGE
    begin, end = -(-begin // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
    if begin >= end:
        return
    pages = resident(begin, end - begin)
    first = None
    for at in range(begin, end, HUGE_PAGE):
        place = (at - begin) // _SMALL_PAGE
        if pages.count(1, place, place + small) >= _USED * small:
            first = at if first is None else first
        elif first is not None:
            yield first, at
            first = None
    if first is not None:
        yield first, end


def _own_memory(least: int, named: str = "") -> list[tuple[int, int]]:
    with open("/proc/self/maps") as maps:
        return list(anonymous(maps, least, named))


def _resident(library: Any, begin: int, size: int) -> bytes:
    """A byte for each small page: 1 where it is there; none is where memory went meanwhile."""
    import ctypes

    pages = (ctypes.c_ubyte * (size // _SMALL_PAGE))()
    library.mincore(begin, size, pages)  # where it fails, the rest stays 0
    return bytes(pages)


def _library() -> Any:
    """The C library. Raises AttributeError or OSError where there is none, or one without what is needed here."""
    import ctypes

    library = ctypes.CDLL(None)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    library.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    return library
