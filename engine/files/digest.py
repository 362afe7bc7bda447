"""SHA-256 of files, and of their pieces, which can be computed side by side. Rule: knows nothing of bundles."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from io import FileIO

PIECE_BYTES = 64 * 2**20
"""A file that is larger is also hashed in pieces of this size, the last one shorter."""

_BUFFER_BYTES = 256 * 2**10  # stays in a CPU's cache between being read and being hashed
_CHUNK_BYTES = 4 * 2**20  # long enough to hash that handing it to another thread costs little
_MOST_THREADS = 8

T = TypeVar("T")
R = TypeVar("R")


def _nobody(size: int) -> None: ...


def sha256(path: Path, told: Callable[[int], object] = _nobody) -> str:
    """Hexadecimal digest of the whole file; `told` of the bytes whenever some were read. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return _sha256(file, None, told)


def pieces(size: int) -> range:
    """Where the pieces of a file of `size` bytes begin; none for a file that is not cut."""
    return range(0, size, PIECE_BYTES) if size > PIECE_BYTES else range(0)


def sha256_of_piece(path: Path, begin: int, told: Callable[[int], object] = _nobody) -> str:
    """Hexadecimal digest of the piece that begins at byte `begin`; `told` as above. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        file.seek(begin)
        return _sha256(file, PIECE_BYTES, told)


def sha256_and_pieces(path: Path, size: int) -> tuple[str, list[str]]:
    """Hexadecimal digests of the whole file of `size` bytes and of its pieces, which is read once. Raises OSError."""
    from concurrent.futures import ThreadPoolExecutor

    if not pieces(size):
        return sha256(path), []
    whole, found = hashlib.sha256(), []
    with open(path, "rb") as file, ThreadPoolExecutor(max_workers=1) as pool:
        for begin in pieces(size):
            piece, end = hashlib.sha256(), begin + PIECE_BYTES
            while chunk := file.read(min(_CHUNK_BYTES, end - file.tell())):
                other = pool.submit(whole.update, chunk)  # lets go of the interpreter lock, as does the other
                piece.update(chunk)
                other.result()
            found.append(piece.hexdigest())
    return whole.hexdigest(), found


def side_by_side(work: Callable[[T], R], of: Iterable[T]) -> list[R]:
    """What `work` returns for each, in order; hashing releases the interpreter lock. Raises what the first one raised.

    One CPU stays free for whoever waits for the result.
    """
    from engine.probe import cpu_quota

    parts = list(of)
    threads = min(_MOST_THREADS, cpu_quota() - 1, len(parts))
    if threads <= 1:
        return [work(part) for part in parts]
    from concurrent.futures import ThreadPoolExecutor  # which imports logging

    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, parts))
    except RuntimeError:  # there is no further thread to be had
        return [work(part) for part in parts]


def _sha256(file: FileIO, size: int | None, told: Callable[[int], object]) -> str:
    """Of `size` bytes, or of all that follow."""
    hashed, buffer = hashlib.sha256(), memoryview(bytearray(_BUFFER_BYTES))
    left = sys.maxsize if size is None else size
    while left > 0 and (got := file.readinto(buffer[: min(left, _BUFFER_BYTES)])):
        hashed.update(buffer[:got])
        left -= got
        told(got)
    return hashed.hexdigest()
