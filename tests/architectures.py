"""Models of the zoo for tasks whose model classes other tasks have as well: few of them, all at night."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

from benchmarks.zoo.text import ARCHITECTURES

_BY_DAY = ("bert", "roberta", "deberta-v2")


def few(names: Iterable[str], by_day: Collection[str] = _BY_DAY) -> list[Any]:
    """`names` as parameters; those that are not `by_day` are the zoo's."""
    return [pytest.param(name, marks=() if name in by_day else (pytest.mark.zoo,)) for name in names]


FEW_ARCHITECTURES = few(ARCHITECTURES)
