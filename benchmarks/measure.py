"""From samples to figures: percentiles, ratios, tables, results files. Rule: no clock and no process here."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from export.command.whole_file import write_whole

MISSING = "-"


def percentile(values: Iterable[float], percent: float) -> float:
    """The value that `percent` of the samples stay below, interpolated between neighbours (percent 50: the median).

    NaN when there are no samples. With fewer than a hundred, p99 is little else than their maximum.
    """
    ordered = sorted(values)
    if not ordered:
        return math.nan
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def ratio(value: float | None, base: float | None) -> float:
    """How many times `base` goes into `value`; NaN when either is missing or there is nothing to divide by."""
    return value / base if value is not None and base else math.nan


def figure(value: float | None, unit: str = "") -> str:
    """Three digits, more only before the point: the noise of a shared machine is larger. "-" for None and NaN."""
    if value is None or math.isnan(value):
        return MISSING
    digits = f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return f"{digits} {unit}" if unit else digits


def times(value: float | None) -> str:
    """A ratio, as in 2.5x."""
    return MISSING if value is None or math.isnan(value) else f"{figure(value)}x"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], *, aligned: bool = True) -> str:
    """A Markdown table; `aligned` pads its cells, so that it can be read in a terminal as well."""
    lines = [list(header), *map(list, rows)]
    widths = [max(3, *map(len, column)) if aligned else 3 for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    if aligned:
        lines = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines)


def say(line: str) -> None:
    """What is no result."""
    print(line, file=sys.stderr, flush=True)


def text_of(path: Path) -> str:
    """The content of a file that a user names. Raises OSError, and ValueError for what is no file or no text."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is not a file; name one that is")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason}); name another file") from error


def write_json(path: Path, results: Any) -> None:
    """Write a results file, folders included; NaN, which JSON has not, becomes null.

    What was there before stays until the new file is whole: on a full disk, or killed, a run loses no earlier round.
    Raises OSError with the file's name.
    """
    text = json.dumps(_without_nan(results), indent=1, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a device or a pipe has nothing to keep
            path.write_text(text)
        else:
            write_whole(path.resolve(), text.encode())
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror})") from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
