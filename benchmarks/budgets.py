"""What each figure may be at most, or at least: budgets.toml, read and held against results.

A budget limits a count, or a ratio to the floor of the same run: a machine that is slower fails no budget.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.measure import figure, markdown, percentile, text_of, times
from benchmarks.results_file import Key, Results
from benchmarks.rounds import plain

BUDGETS = Path(__file__).parent / "budgets.toml"


@dataclass(frozen=True)
class Budget:
    """The limit of one figure; exactly one of `at_most` and `at_least` is set."""

    scenario: str
    target: str
    point: str
    metric: str
    reason: str
    """Why this limit and no other."""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def key(self) -> Key:
        """The measurement that it limits."""
        return self.scenario, self.target, self.point, self.metric

    @property
    def limit(self) -> str:
        """As in "at most 1.5"."""
        return f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"

    def keeps(self, value: float) -> bool:
        """Whether `value` is within the limit; NaN is not."""
        return value <= self.at_most if self.at_most is not None else value >= (self.at_least or 0.0)

    def used(self, value: float) -> float:
        """How much of the budget `value` takes: above 1 it is exceeded."""
        part, whole = (value, self.at_most) if self.at_most is not None else (self.at_least or 0.0, value)
        return part / whole if whole else 0.0 if self.keeps(value) else math.inf


@dataclass(frozen=True)
class Outcome:
    """A budget and what was measured: the median of the rounds' ratios to the floor, or of their values."""

    budget: Budget
    value: float | None
    """None where the scenario ran and this was not measured."""
    is_ratio: bool

    @property
    def kept(self) -> bool:
        """Whether the budget holds; what was not measured does not hold it."""
        return self.value is not None and self.budget.keeps(self.value)


def read(path: Path = BUDGETS) -> list[Budget]:
    """The budgets of a file. Raises ValueError, with the entry, when one lacks something or has a word too many."""
    try:
        entries = tomllib.loads(text_of(path))["budget"]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise ValueError(f"{path} holds no [[budget]] entries that can be read: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: budgets are entries with [[budget]] above each, two brackets on both sides")
    return [_budget(path, entry) for entry in entries]


def _budget(path: Path, entry: Mapping[str, Any]) -> Budget:
    names = {field.name for field in fields(Budget)}
    missing = names - {"at_most", "at_least"} - set(entry)
    if missing or set(entry) - names or ("at_most" in entry) == ("at_least" in entry):
        raise ValueError(
            f"{path}: a budget has scenario, target, point, metric, reason, and at_most or at_least; this one is "
            f"{dict(entry)}"
        )
    for name, value in entry.items():
        is_limit = name in ("at_most", "at_least")
        if not (type(value) in (int, float) and math.isfinite(value) if is_limit else isinstance(value, str)):
            raise ValueError(f"{path}: {name} of a budget is a {'number' if is_limit else 'text'}, not {value!r}")
    return Budget(**entry)


def check(results: Results, budgets: Iterable[Budget]) -> list[Outcome]:
    """The budgets of what ran; those of scenarios and targets that did not are left out.

    A budget of `ours` holds for `ours-int8` as well where that ran; not the other way round.
    """
    ran = list(dict.fromkeys((one.scenario, one.target) for one in results.measurements))
    held = [
        replace(budget, target=target)
        for budget in budgets
        for scenario, target in ran
        if scenario == budget.scenario and budget.target in (target, plain(target))
    ]
    return [_outcome(results, budget) for budget in held]


def _outcome(results: Results, budget: Budget) -> Outcome:
    one = results.find(budget.key)
    if one is None:
        return Outcome(budget, None, False)
    ratios = results.ratios(one)
    values = ratios or tuple(value for value in one.repeats if value is not None)
    return Outcome(budget, percentile(values, 50) if values else None, bool(ratios))


def table(outcomes: Sequence[Outcome]) -> str:
    """Every budget with what was measured and how much of it that takes, the most first; Markdown."""
    rows = []
    for one in sorted(outcomes, key=lambda one: -_used(one)):
        show = times if one.is_ratio else figure
        name = f"{one.budget.scenario}: {', '.join(one.budget.key[1:])}"
        share = f"{_used(one):.0%}" if one.value is not None else "not measured"
        rows.append(("" if one.kept else "OVER", name, show(one.value), one.budget.limit, share))
    return markdown(("", "", "measured", "budget", "of the budget"), rows)


def reasons(outcomes: Sequence[Outcome]) -> str:
    """Every budget with what was measured and the reason, in the order of the file; Markdown for a page."""
    rows = []
    for one in outcomes:
        value = (times if one.is_ratio else figure)(one.value)
        rows.append((one.budget.scenario, ", ".join(one.budget.key[1:]), value, one.budget.limit, one.budget.reason))
    return markdown(("scenario", "figure", "measured", "budget", "why"), rows, aligned=False)


def _used(one: Outcome) -> float:
    return one.budget.used(one.value) if one.value else float("inf") if not one.kept else 0.0


def complaints(outcomes: Iterable[Outcome]) -> list[str]:
    """A sentence for each scenario that is over a budget, with the reasons of the limits."""
    over: dict[str, list[str]] = {}
    for one in outcomes:
        if not one.kept:
            budget = one.budget
            what = f"{', '.join(budget.key[1:])} is {figure(one.value)}, {budget.limit} is allowed ({budget.reason})"
            over.setdefault(budget.scenario, []).append(what)
    return [f"OVER BUDGET {scenario}: {'; '.join(parts)}" for scenario, parts in over.items()]
