"""What options may hold: functions for argparse's `type`, so that what cannot be measured is refused at once.

Rule: nothing is written or made here, and no import that --help does not need.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from engine.bundle import open_bundle
from engine.errors import BundleError

N = TypeVar("N", int, float)

_MOST = 1_000_000_000
_DAY_S = 86400.0

EMBEDDING = ("feature-extraction", "sentence-similarity")
"""Tasks that take texts and answer with their vectors."""
TEXTS = (*EMBEDDING, "sparse-encoder", "text-classification", "token-classification")
"""Tasks that take `text` or `texts`, and need nothing beside them."""
_TOKENS = frozenset(("input_ids", "attention_mask", "token_type_ids"))


def _value(kind: type[N], is_one: Callable[[N], bool], what: str) -> Callable[[str], N]:
    def read(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not is_one(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read


count = _value(int, lambda value: 1 <= value <= _MOST, f"a whole number from 1 to {_MOST}")
count_or_none = _value(int, lambda value: 0 <= value <= _MOST, f"a whole number from 0 to {_MOST}")
positive = _value(float, lambda value: 0 < value < math.inf, "a number above 0")
not_negative = _value(float, lambda value: 0 <= value < math.inf, "a number from 0 up")
seconds = _value(float, lambda value: 0 < value <= _DAY_S, f"a number of seconds above 0 and up to {_DAY_S:.0f}")
share = _value(float, lambda value: 0 < value < 1, "between 0 and 1")


def counts(text: str) -> list[int]:
    """A list of whole numbers from 1 up, sorted."""
    try:
        return sorted({count(part) for part in text.split(",")})
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 1 up") from None


def rate(text: str) -> str:
    """Jobs a second, or a percentage of the best closed loop."""
    try:
        positive(text.removesuffix("%"))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of jobs/s nor a percentage, such as 50%"
        ) from None
    return text


def percentages(text: str) -> tuple[float, ...]:
    """A list of percentages."""
    percent = _value(float, lambda value: 0 <= value <= 100, "a percentage")
    try:
        return tuple(map(percent, text.split(",")))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of percentages from 0 to 100") from None


def names(known: Sequence[str], what: str) -> Callable[[str], list[str]]:
    """A list of some of `known`; `what` one of them is, in a word."""

    def read(text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"there is no {what} {unknown[0]!r}; known are {', '.join(known)}")
        return found

    return read


def words(text: str) -> str:
    """Options for another command, as a shell takes them apart."""
    try:
        shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be taken apart as a shell does ({error})") from None
    return text


def address(text: str) -> str:
    """The http address of a server, for argparse."""
    try:
        parts = urlsplit(text)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        is_one = False
    if not is_one:
        raise argparse.ArgumentTypeError(f"{text!r} is no address such as http://localhost:8080")
    return text


def bundle(text: str) -> Path:
    """A folder that holds a bundle; its files are not read."""
    try:
        open_bundle(Path(text))
    except BundleError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def bundle_for(tasks: Sequence[str]) -> Callable[[str], Path]:
    """A folder that holds a bundle for one of `tasks`: others take jobs, or have graphs, that are not measured."""

    def read(text: str) -> Path:
        task = open_bundle(path := bundle(text)).manifest.task
        if task not in tasks:
            raise argparse.ArgumentTypeError(
                f"{text} is for {task}; name a bundle for {', '.join(tasks[:-1])} or {tasks[-1]}"
            )
        return path

    return read


def bundle_of_tokens(text: str) -> Path:
    """A folder that holds a bundle of one graph, which reads rows of tokens and nothing else."""
    manifest = open_bundle(path := bundle(text)).manifest
    inputs = {spec.name for graph in manifest.graphs.values() for spec in graph.inputs}
    if set(manifest.graphs) != {"model"} or not {"input_ids"} <= inputs <= _TOKENS:
        raise argparse.ArgumentTypeError(
            f"{text} is for {manifest.task}; name a bundle of one graph that reads nothing but tokens, such as one for "
            "feature-extraction or text-classification"
        )
    return path


def bundle_to_make(text: str) -> Path:
    """A folder that holds a bundle, or nothing: anything else would be lost."""
    path = Path(text)
    if path.exists() and not (path / "manifest.json").is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise argparse.ArgumentTypeError(f"{path} holds something else than a bundle; name a new or empty folder")
    return path


def folder(text: str) -> Path:
    """A folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return Path(text)


def existing_file(text: str) -> Path:
    """A file that is there."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return Path(text)


def new_file(text: str) -> Path:
    """A file to write, or to write over; its folder may be missing."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; name a file")
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written: {above} is no folder that takes files")
    return path


def add_bundle(parser: argparse.ArgumentParser, tasks: Sequence[str], what: str = "a bundle to serve") -> None:
    """Declare --bundle."""
    parser.add_argument("--bundle", type=bundle_for(tasks), help=f"{what} (default: all-MiniLM-L6-v2, exported)")


def add_rounds(parser: argparse.ArgumentParser, default: int, what: str = "times that all is measured") -> None:
    """Declare --rounds."""
    parser.add_argument("--rounds", type=count, default=default, help=f"{what} (default: %(default)s)")
