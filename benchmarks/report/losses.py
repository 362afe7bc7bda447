"""How far each precision is from PyTorch, by what `accuracy` measured. No matplotlib here: `recommend` asks, too."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.report.stored import Source, Stored

SCENARIO = "accuracy"


@dataclass(frozen=True)
class Loss:
    """How far a precision is from the reference."""

    source: Source
    target: str
    point: str
    metric: str
    loss: float
    """1 - cosine, or the difference, or 1 - agreement: 0 is equal."""
    value: float
    """The metric as it was measured."""


def losses(known: Stored) -> list[Loss]:
    """A loss for each target and point; of several metrics the worst cosine, or else the first that can be a loss."""
    made: dict[tuple[str, str, str], Loss] = {}
    for source in known.having(SCENARIO):
        found = sorted(source.results.of(SCENARIO), key=lambda one: _rank(one.metric))
        for one in found:
            key = source.name, one.target, one.point
            if key in made or one.median != one.median or one.unit in ("s", "ms", "us", "MB", "jobs/s", "rows/s"):
                continue
            loss = 1 - one.median if one.better == "higher" else one.median
            made[key] = Loss(source, one.target, one.point, one.metric, max(0.0, loss), one.median)
    return list(made.values())


def _rank(metric: str) -> int:
    order = ("min_cosine", "cosine_min", "cosine", "agreement", "difference")
    return next((place for place, name in enumerate(order) if name in metric), len(order))
