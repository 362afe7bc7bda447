"""Files as they were first found, compared with what lies at their paths by now. Rule: knows nothing of bundles.

A path may lead to another file at any time: a deployment exchanges a folder on a volume, or points a link elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


class SameFiles:
    """`paths` as they are now.

    Until `close` they are held, without being opened for reading: else the number of one that is removed may be that of
    the next, and some network file systems give a file another number from time to time.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._held: list[int] = []
        self._found: dict[Path, tuple[int, ...] | None] = {}
        self.add(paths)

    def add(self, paths: Iterable[Path]) -> None:
        """Further ones, none of them known yet."""
        for path in paths:
            with suppress(OSError):  # whoever opens it tells what is wrong
                self._held.append(os.open(path, os.O_PATH))
            self._found[path] = _seen(path)

    def changed(self) -> Path | None:
        """The first of the paths that leads to another file now, or to one that was written to since; else None."""
        return next((path for path, found in self._found.items() if _seen(path) != found), None)

    def close(self) -> None:
        """Let go of them."""
        while self._held:
            os.close(self._held.pop())


def _seen(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
