"""The results files that a report is made from, and how plots ask for what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.results_file import Measurement, Results, read
from benchmarks.rounds import plain

RESULTS = Path("benchmarks/results")


@dataclass(frozen=True)
class Source:
    """One results file."""

    name: str
    """Of the file, without its ending: peers-cpu."""
    results: Results

    @property
    def machine(self) -> str:
        """The GPU, or the processor and how many of its cores there were."""
        known = self.results.environment
        if known.get("gpu"):
            return str(known["gpu"])
        processor = re.sub(
            r"\((R|TM)\)| CPU| Processor| @.*", "", str(known.get("processor") or "an unknown processor")
        )
        count = known.get("cpus")
        return f"{processor.strip()}, {count:g} CPUs" if isinstance(count, int | float) else processor.strip()

    def targets(self, scenario: str) -> list[str]:
        """Who was measured, in the order of the file."""
        return list(dict.fromkeys(one.target for one in self.results.of(scenario)))

    def value(self, scenario: str, target: str, point: str, metric: str) -> Measurement | None:
        """The measurement, or None where there is none with a value."""
        found = self.results.find((scenario, target, point, metric))
        return found if found and found.median == found.median else None


@dataclass(frozen=True)
class Stored:
    """All that is known, and what could not be read."""

    sources: Sequence[Source]
    unread: Sequence[str] = field(default=())
    """A sentence for each file that is left out."""

    def having(self, scenario: str) -> list[Source]:
        """The files with measurements of this scenario: of each machine the one with the most, if several have some.

        Ours count before others: a file of a quick run has few of ours, beside workers without a model.
        """
        best: dict[str, tuple[tuple[int, int], Source]] = {}
        for source in self.sources:
            found = source.results.of(scenario)
            count = sum(one.target.startswith("ours") and plain(one.target) != "ours-fake" for one in found), len(found)
            if found and (source.machine not in best or count > best[source.machine][0]):
                best[source.machine] = count, source
        return [source for _, source in best.values()]


def stored(files: Iterable[Path]) -> Stored:
    """Read files; those of another form, or that are not there, are left out with the reason."""
    sources, unread = [], []
    for path in files:
        try:
            sources.append(Source(path.stem, read(path)))
        except (OSError, ValueError) as error:
            reason = f"{path} cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
            unread.append(f"left out: {reason}")
    return Stored(sources, unread)


def committed() -> list[Path]:
    """The results files of the checkout, by name."""
    return sorted(RESULTS.glob("*.json"))


class Shape(NamedTuple):
    """Where an engine was measured: what a point such as "bert-base, batch 8, 128 tokens" says."""

    batch: int
    tokens: int
    of: str
    """The rest of the point: the model, or nothing."""


def shape(point: str) -> Shape | None:
    """The shape in the name of a point; None where there is no batch in it. Without tokens they are 0."""
    rest, numbers = [], {"batch": 0, "tokens": 0}
    for part in (part.strip() for part in point.split(",")):
        found = re.fullmatch(r"(?:batch|seq) (\d+)|(\d+) (?:tokens|rows)", part)
        if not found:
            rest.append(part)
        elif part.startswith("batch") or part.endswith("rows"):
            numbers["batch"] = int(found[1] or found[2])
        else:
            numbers["tokens"] = int(found[1] or found[2])
    return Shape(numbers["batch"], numbers["tokens"], ", ".join(rest)) if numbers["batch"] else None
