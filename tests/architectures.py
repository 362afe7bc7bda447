"""Text models of the zoo for tasks whose model classes other tasks have as well: few of them, all at night."""

from __future__ import annotations

import pytest

from benchmarks.zoo.text import ARCHITECTURES

_BY_DAY = ("bert", "roberta", "deberta-v2")

FEW_ARCHITECTURES = [pytest.param(name, marks=() if name in _BY_DAY else (pytest.mark.zoo,)) for name in ARCHITECTURES]
