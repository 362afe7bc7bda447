"""What a user sees while it works: a line a stage, with seconds and sizes. Plain text unless stdout is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from export import interrupts
from export.terminal import is_rich

_WIDTH = 9  # of the longest usual name


@dataclass(frozen=True)
class Done:
    """A stage that has ended."""

    name: str
    seconds: float
    notes: tuple[str, ...]


@dataclass
class Note:
    """Called with what is to end the stage's line; `now` shows meanwhile what the stage is at, on a terminal."""

    texts: list[str] = field(default_factory=list)
    _show: Callable[[str], None] = lambda text: None

    def __call__(self, text: str) -> None:
        """Add `text` to the end of the line."""
        self.texts.append(text)

    def now(self, text: str) -> None:
        """Show `text` beside the stage's name until the next call, or its end."""
        self._show(text)


_done: list[Done] = []


@contextmanager
def recorded() -> Iterator[Sequence[Done]]:
    """The stages that end inside."""
    _done.clear()
    yield _done


@contextmanager
def stage(name: str) -> Iterator[Note]:
    """Time the block and print a line about it; what is passed to the yielded object ends the line.

    On a terminal a spinner, the seconds so far and what the block is at stand there meanwhile. Nothing is printed when
    the block raises. Raises KeyboardInterrupt where a library has swallowed one.
    """
    interrupts.check()
    start = time.perf_counter()
    rich = is_rich(sys.stdout)
    if rich:
        with _spinner(name) as show:
            note = Note(_show=show)
            yield note
    else:
        note = Note()
        yield note
    interrupts.check()
    seconds = time.perf_counter() - start
    _done.append(Done(name, round(seconds, 3), tuple(note.texts)))
    _print_line(name, seconds, ", ".join(note.texts), rich)


@contextmanager
def _spinner(name: str) -> Iterator[Callable[[str], None]]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn(f"{name:<{_WIDTH}}"), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("")

        def show(text: str) -> None:
            progress.update(task, description=text.replace("[", "\\["))

        yield show


def _print_line(name: str, seconds: float, notes: str, rich: bool) -> None:
    line = f"{name:<{_WIDTH}}{seconds:6.1f} s  {notes}".rstrip()
    if not rich:
        print(line, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble(("✓ ", "green"), (f"{name:<{_WIDTH}}", "bold"), line[_WIDTH:])
    Console(soft_wrap=True, highlight=False).print(text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns that are as wide as their widest cell."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = ((cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def megabytes(size: int) -> str:
    """A size in bytes, readable."""
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def stages(done: Sequence[Done]) -> list[dict[str, Any]]:
    """For --json."""
    return [{"name": one.name, "seconds": one.seconds, "notes": list(one.notes)} for one in done]
