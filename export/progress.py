"""What a user sees: a line a stage while it runs, and a table at the end. Plain text unless stdout is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Note = Callable[[str], None]


@contextmanager
def stage(name: str) -> Iterator[Note]:
    """Time the block and print a line about it; what is passed to the yielded function ends the line.

    On a terminal a spinner stands there meanwhile. Nothing is printed when the block raises.
    """
    notes: list[str] = []
    start = time.perf_counter()
    if sys.stdout.isatty():
        from rich.console import Console

        with Console().status(f"{name} ..."):
            yield notes.append
    else:
        yield notes.append
    mark = "✓ " if sys.stdout.isatty() else ""
    line = f"{mark}{name:<9}{time.perf_counter() - start:6.1f} s  {', '.join(notes)}"
    print(line.rstrip(), flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns that are as wide as their widest cell."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = ((cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def megabytes(size: int) -> str:
    """A size in bytes, readable."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
