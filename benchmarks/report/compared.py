"""This worker beside its peers: the five figures that decide, and how many times better each is, round by round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report.stored import Source, Stored
from benchmarks.results_file import Measurement

SCENARIO = "peers"
OURS = "ours"
COMMAND = "python -m benchmarks peers --json benchmarks/results/peers-cpu.json"


@dataclass(frozen=True)
class Question:
    """One of the figures that decide between workers."""

    title: str
    point: str
    metric: str
    what: str


QUESTIONS = (
    Question("Cold start", "cold start", "first_answer_s", "exec to the first answer"),
    Question("Idle job, p50", "idle", "p50_ms", "submit to answer, nothing else to do"),
    Question("32 clients", "32 clients", "jobs_per_s", "jobs a second, each one text"),
    Question("Bulk", "bulk", "rows_per_s", "texts a second, all in one job"),
    Question("Memory", "memory", "pss_mb", "all its processes, shared pages once (PSS)"),
)


@dataclass(frozen=True)
class Compared:
    """A figure of another target beside ours, and how many times better ours is (below 1: worse)."""

    target: str
    other: Measurement
    ratios: Sequence[float]
    """A round each."""

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.ratios)


def chosen(known: Stored) -> Source | None:
    """The file that has the peers; of several the one with the most targets, without a GPU at first."""
    found = known.having(SCENARIO)
    return max(
        found, key=lambda one: (len(one.targets(SCENARIO)), not one.results.environment.get("gpu")), default=None
    )


def ours(source: Source, question: Question) -> Measurement | None:
    """Our answer to a question."""
    return source.value(SCENARIO, OURS, question.point, question.metric)


def against(source: Source, question: Question) -> list[Compared]:
    """Every other target that answered the question in the same rounds, the floor last."""
    mine = ours(source, question)
    if mine is None:
        return []
    others = [target for target in source.targets(SCENARIO) if target not in (OURS, "floor")]
    made = [compare(mine, source.value(SCENARIO, target, mine.point, mine.metric)) for target in others]
    floor = mine.floor or ("floor", mine.point, mine.metric)
    made.append(compare(mine, source.value(SCENARIO, *floor)))
    return [one for one in made if one is not None]


def compare(mine: Measurement, other: Measurement | None) -> Compared | None:
    """How many times better `mine` is, round by round; None where no round has both."""
    if other is None:
        return None
    pairs = [(a, b) for a, b in zip(mine.repeats, other.repeats, strict=False) if a and b]
    ratios = [a / b if mine.better == "higher" else b / a for a, b in pairs]
    return Compared(other.target, other, ratios) if ratios else None
