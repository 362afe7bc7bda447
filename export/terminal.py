"""What stdout is, and how to keep it for one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO


def open_closed() -> None:
    """Where a standard file was closed, it is /dev/null: else a file of the bundle gets its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def is_rich(stream: TextIO) -> bool:
    """Whether colours and a line that moves belong there: a terminal that can, and a user who did not decline.

    https://no-color.org: NO_COLOR, when it is not empty, declines.
    """
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")


@contextmanager
def only_json() -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Send everything that is written to stdout inside to stderr, what libraries in C++ write as well.

    The yielded function writes the one object that stdout is for.
    """
    sys.stdout.flush()
    kept, stdout = os.dup(1), sys.stdout
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def say(answer: Mapping[str, Any]) -> None:
        stdout.flush()
        sys.stderr.flush()
        os.dup2(kept, 1)
        stdout.write(json.dumps(answer, indent=1, ensure_ascii=False) + "\n")
        stdout.flush()

    try:
        yield say
    finally:
        sys.stdout = stdout
        os.dup2(kept, 1)
        os.close(kept)
