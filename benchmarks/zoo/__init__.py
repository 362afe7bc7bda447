"""Models for tests and benchmarks, made from configs with seeded random weights: no network, no model hub.

A file a family; its CASES are every task on every architecture, its STAGES what `python -m benchmarks tasks` times.
"""

from __future__ import annotations

import os
from importlib import import_module

from benchmarks.zoo.case import Case, Stages


def _families() -> list[str]:
    names = (name.removesuffix(".py") for name in os.listdir(os.path.dirname(__file__)) if name.endswith(".py"))
    return sorted(name for name in names if name not in ("__init__", "case"))


def cases() -> list[Case]:
    """Every task on every architecture."""
    return [case for family in _families() for case in import_module(f"benchmarks.zoo.{family}").CASES]


def stages() -> list[Stages]:
    """What is measured."""
    return [one for family in _families() for one in import_module(f"benchmarks.zoo.{family}").STAGES]
