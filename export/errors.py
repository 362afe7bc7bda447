"""Why an export ends without a bundle. What is not one of these is a defect of ours and keeps its traceback."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


class Refused(Exception):
    """What was asked for cannot be exported. The message is one sentence that names the fix."""


class ParityFailed(Exception):
    """The bundle disagrees with the reference. `rows` are the worst answers; `header` names their columns."""

    def __init__(self, message: str, rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)
        self.header = tuple(header)
        self.figures: Mapping[str, Any] = {}
        """What parity.json would say."""


def refusal_of(error: BaseException) -> Refused | None:
    """The refusal that `error` amounts to when the disk or its permissions are to blame, else None."""
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        return Refused(f"{error.filename}: {error.strerror}; change its permissions or name another folder")
    seen: BaseException | None = error
    while seen is not None:  # libraries wrap what the system said
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return Refused("the disk is full; free some space or name a folder on another disk with --out")
        seen = seen.__cause__ or seen.__context__
    return None
