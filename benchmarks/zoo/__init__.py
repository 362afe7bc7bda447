"""Models for tests and benchmarks, made from configs with seeded random weights: no network, no model hub.

A file a family; its CASES are every task on every architecture, its STAGES what `python -m benchmarks tasks` times, its
MORE architectures at one task each, for `make test-zoo` alone.
"""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from typing import Any

from benchmarks.zoo.case import Case, Stages

_FAMILIES = ("audio", "decoders", "encoders", "images", "text", "towers", "vision")


def cases() -> list[Case]:
    """Every task on every architecture."""
    return _of_families("CASES")


def stages() -> list[Stages]:
    """What is measured."""
    return _of_families("STAGES")


def models() -> list[Case]:
    """Every architecture once, across all tasks: what `make test-zoo` exports; with those that are refused.

    Of tasks whose replies are compared with PyTorch's, which those of a fork need not be, and that are there.
    """
    from benchmarks.zoo.answers import COMPARE
    from engine.tasks import TASKS

    chosen: dict[str, Case] = {}
    uses: Counter[str] = Counter()
    for case in sorted(cases(), key=lambda one: one.architecture):
        if case.task not in COMPARE or case.task not in TASKS:
            continue
        before = chosen.get(case.architecture)
        if before is None or uses[case.task] < uses[before.task] - 1:
            uses.subtract([before.task] if before else [])
            uses[case.task] += 1
            chosen[case.architecture] = case
    more = [case for case in _of_families("MORE") if case.task in TASKS and (case.refused or case.task in COMPARE)]
    return [*chosen.values(), *more]


def _of_families(name: str) -> list[Any]:
    families = [import_module(f"benchmarks.zoo.{family}") for family in _FAMILIES]
    return [one for family in families for one in getattr(family, name, [])]
