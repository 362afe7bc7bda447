"""Why an export ends without a bundle. What is not one of these is a defect of ours and keeps its traceback."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from export.command.exit_codes import GATE_FAILED, REFUSED, UNAVAILABLE
from export.packages import lacking

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG}
_NO_ROOM = 1 << 20  # bytes
_SAYS_FULL = ("no space left on device", "disk quota exceeded", "file too large", "os error 28", "os error 27")
_SAYS_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "failed to allocate memory", "bad_alloc")


class Refused(Exception):
    """What was asked for cannot be exported. The message is one sentence that names the fix."""

    exit_code: ClassVar[int] = REFUSED


class Unavailable(Refused):
    """The machine or the network lacks something, so that the same command may pass elsewhere or later."""

    exit_code: ClassVar[int] = UNAVAILABLE


class CacheFull(Unavailable):
    """The disk of the Hub's cache is full, which another --out does not change."""


class Untraceable(Refused):
    """An exporter cannot make a graph of the model; another one may."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
        """What the exporter said, in one line."""


class ParityFailed(Exception):
    """The bundle disagrees with the reference. `rows` are the worst answers; `header` names their columns."""

    exit_code: ClassVar[int] = GATE_FAILED

    def __init__(self, message: str, rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)
        self.header = tuple(header)
        self.figures: Mapping[str, Any] = {}
        """What parity.json would say."""


def refusal_of(error: BaseException) -> Refused | None:
    """The refusal that `error` is, or amounts to when disk, permissions, memory or packages are to blame, else None."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        return Refused(f"{error.filename}: {error.strerror}; change its permissions or name another folder")
    if isinstance(error, ImportError) and (sentence := lacking(error)):
        return Unavailable(sentence)
    for one in _chain(error):  # libraries wrap what the system said, some in words alone
        if _says_full(one):
            return Unavailable("the disk is full; free some space or name a folder on another disk with --out")
        if isinstance(one, MemoryError) or any(words in str(one).lower() for words in _SAYS_NO_MEMORY):
            return Unavailable(
                "not enough memory; export on a machine with more, or end what else runs here (docs/export.md says how "
                "much a model takes)"
            )
    return None


def is_of_full_disk(error: BaseException) -> bool:
    """Whether a full disk is what `error`, or one that it was made of, is about."""
    return any(_says_full(one) for one in _chain(error))


def _says_full(error: BaseException) -> bool:
    said = str(error).lower()
    return (isinstance(error, OSError) and error.errno in _FULL) or any(words in said for words in _SAYS_FULL)


@contextmanager
def blaming_the_disk(folder: Path) -> Iterator[None]:
    """Make an error of the disk of what goes wrong inside while there is no room left in `folder`.

    ONNX Runtime, for one, says "Protobuf serialization failed" and no more.
    """
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        if shutil.disk_usage(folder).free < _NO_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
