"""What a user sees while it works: a line a stage, with seconds and sizes. Plain text unless stdout is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.command import interrupts
from export.command.terminal import is_rich
from export.errors import Unavailable

_WIDTH = 9  # of the longest usual name


@dataclass(frozen=True)
class Done:
    """A stage that has ended."""

    name: str
    seconds: float
    notes: tuple[str, ...]


_done: list[Done] = []


@contextmanager
def recorded() -> Iterator[Sequence[Done]]:
    """The stages that end inside."""
    _done.clear()
    yield _done


@contextmanager
def stage(name: str) -> Iterator[Callable[[str], None]]:
    """Time the block and print a line about it, which ends with the texts that the yielded function was called with.

    On a terminal a spinner and the seconds so far stand there meanwhile. Nothing is printed when the block raises.
    Raises KeyboardInterrupt where a library has swallowed one.
    """
    interrupts.check()
    start = time.perf_counter()
    notes: list[str] = []
    rich = is_rich(sys.stdout)
    with _spinner(name) if rich else nullcontext():
        yield notes.append
    interrupts.check()
    seconds = time.perf_counter() - start
    _done.append(Done(name, round(seconds, 3), tuple(notes)))
    try:
        _print_line(name, seconds, ", ".join(notes), rich)
    except BrokenPipeError:  # whoever read it has ended
        raise
    except OSError as error:
        if sys.stdout is not sys.stderr:  # as with --json, whose object says all of it once more
            raise Unavailable(
                f"the output cannot be written ({error.strerror}); send it elsewhere, or make room there"
            ) from error


@contextmanager
def _spinner(name: str) -> Iterator[None]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn(f"{name:<{_WIDTH}}"), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        progress.add_task("")
        yield


def _print_line(name: str, seconds: float, notes: str, rich: bool) -> None:
    line = f"{name:<{_WIDTH}}{seconds:6.1f} s  {notes}".rstrip()
    if not rich:
        print(line, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble(("✓ ", "green"), (f"{name:<{_WIDTH}}", "bold"), line[_WIDTH:])
    Console(soft_wrap=True, highlight=False).print(text)


def size_of(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def stages(done: Sequence[Done]) -> list[dict[str, Any]]:
    """For --json."""
    return [{"name": one.name, "seconds": one.seconds, "notes": list(one.notes)} for one in done]
