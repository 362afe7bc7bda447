"""What stdout is, and how to keep it for one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, TextIO


def open_closed() -> None:
    """Where a standard file was closed, it is /dev/null: else a file of the bundle gets its number.

    And what the encoding of stdout does not have is written as its number, as on stderr.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def without_effect() -> Iterator[None]:
    """Tell inside what has happened: output that cannot be written is a warning on stderr, where that can be."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        settle()
        with suppress(OSError):
            print(f"warning: the output cannot be written ({error.strerror})", file=sys.stderr, flush=True)


def settle() -> None:
    """Let what could not be written go nowhere: at the end of the process it would be tried again, and be its code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


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
        is_utf8 = (stdout.encoding or "").lower() in ("utf-8", "utf8")
        stdout.write(json.dumps(answer, indent=1, ensure_ascii=not is_utf8) + "\n")
        stdout.flush()

    try:
        yield say
    finally:
        sys.stdout = stdout
        os.dup2(kept, 1)
        os.close(kept)
