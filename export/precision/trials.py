"""What a ladder tried: a record a step, and what it came to."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from export.errors import ParityFailed

Checked: TypeAlias = "dict[str, Any] | ParityFailed"
"""What a check came to: the figures of parity.json, or why it failed."""


@dataclass
class Record:
    """One step of one target's ladder."""

    step: str
    passed: bool
    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)
    """The worst figure of every measure, as far as answers were compared."""
    reason: str = ""
    """Why it was left."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Layers that stay in fp32, rows a second ..."""

    def told(self) -> dict[str, Any]:
        """For parity.json."""
        told = {"step": self.step, "passed": self.passed, "seconds": round(self.seconds, 1)}
        return {**told, "figures": dict(self.figures), "reason": self.reason, **self.more}


@dataclass
class Climbed:
    """Where a ladder ended."""

    precision: str
    records: list[Record]
    graphs: dict[str, Any] = field(default_factory=dict)
    """parity.json's entries of the graphs that were kept."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Its other entries."""
    failures: list[str] = field(default_factory=list)
    """Why the gate would not have let this through."""

    def stay_fp32(self) -> Climbed:
        """End at fp32, which needs no trial."""
        self.records.append(Record("fp32", True, 0.0, more={"because": "it is what is left"}))
        return self

    @property
    def said(self) -> str:
        """For the line of the stage."""
        last = next((one for one in reversed(self.records) if one.passed), None)
        left = sum(not one.passed for one in self.records)
        return f"{last.step if last else self.precision}, {left} left" if left else (last.step if last else "fp32")


def summed(figures: Mapping[str, Any]) -> dict[str, float]:
    """The worst figure of every limit over all graphs of a check."""
    found: dict[str, float] = {}
    for key in figures["limits"]:
        sign = -1 if key.startswith("min_") else 1
        values = [graph[key] for graph in figures["graphs"].values() if key in graph]
        if values:  # NaN is the worst
            found[key] = max(values, key=lambda value: (math.isnan(value), sign * value))
    return found


def record_of(step: str, began: float, checked: Checked, **more: Any) -> Record:
    """A record of what the gate returned, or raised; `began` is time.perf_counter()'s at the beginning."""
    seconds = time.perf_counter() - began
    if isinstance(checked, ParityFailed):
        worst = f"; worst: {', '.join(checked.rows[0])}" if checked.rows else ""
        return Record(
            step, False, seconds, summed(checked.figures) if checked.figures else {}, f"{checked}{worst}", more
        )
    return Record(step, True, seconds, summed(checked), "", more)
