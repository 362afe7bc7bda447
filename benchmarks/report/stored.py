"""The results files that a report is made from, and how plots ask for what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results_file import Measurement, Results, read
from benchmarks.rounds import named_engine, plain

RESULTS = Path("benchmarks/results")
AUTO, CPU = "auto", "onnxruntime-cpu"


class Place(NamedTuple):
    """Where in a scenario something was measured."""

    engine: str
    target: str
    point: str


@dataclass(frozen=True)
class Source:
    """One results file."""

    name: str
    """Of the file, without its ending: peers-cpu."""
    results: Results
    repeated: frozenset[Place] = field(default=frozenset())
    """What another file of the same machine speaks for; see `Stored.having`."""

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

    def of(self, scenario: str) -> list[Measurement]:
        """The measurements of one scenario that this file speaks for."""
        return [one for one in self.results.of(scenario) if self.speaks_for(scenario, one.target, one.point)]

    def speaks_for(self, scenario: str, target: str, point: str) -> bool:
        """Whether no other file of the same machine does."""
        return not self.repeated or Place(self.engine(scenario, target), target, point) not in self.repeated

    def targets(self, scenario: str) -> list[str]:
        """Who was measured, in the order of the file."""
        return list(dict.fromkeys(one.target for one in self.of(scenario)))

    def options(self, scenario: str) -> Mapping[str, Any]:
        """What the command was told; in a file of several scenarios each has its own."""
        found = self.results.options.get(scenario)
        return found if isinstance(found, Mapping) else self.results.options

    def details(self, scenario: str, name: str) -> Any:
        """What the file holds beside measurements, in one of several scenarios by scenario; None without."""
        found = self.results.details.get(scenario)
        return found[name] if isinstance(found, dict) and name in found else self.results.details.get(name)

    def engine(self, scenario: str, target: str) -> str:
        """What the target ran on: by its name, by what was seen, or by the options; AUTO where none tells it of a GPU.

        Without a GPU there is one engine. What a target is called does not always tell: `latency --cpu` on a GPU's
        machine measures "ours" as well.
        """
        told = self.options(scenario)
        served = self.results.environment.get("targets", {}).get(target, {}).get("engine")
        found = named_engine(target) or str(served or told.get("served_engine") or told.get("engine") or AUTO)
        return CPU if found == AUTO and not self.results.environment.get("gpu") else found

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
        """The files with measurements of this scenario, each with what it speaks for.

        Of several of one machine first the one with the most, then those that have of ours what it lacks, that alone:
        no target is shown twice at one point. Ours count before others: a file of a quick run has few of ours, beside
        workers without a model.
        """
        machines: dict[str, list[Source]] = {}
        for source in self.sources:
            if source.of(scenario):
                machines.setdefault(source.machine, []).append(source)
        return [one for sources in machines.values() for one in _without_repeats(sources, scenario)]

    def apart(self, source: Source, scenario: str) -> str:
        """What tells a row of this file from the same row of another, in brackets; nothing where there is no other."""
        parts = self.differing(source, scenario)
        return f" ({', '.join(parts)})" if parts else ""

    def differing(self, source: Source, scenario: str, *, by_file: bool = True) -> list[str]:
        """Machine, engine and file, as far as the files that are shown differ in them."""
        shown = self.having(scenario)
        here = [one for one in shown if one.machine == source.machine]
        engines = {one.engine(scenario, target) for one in here for target in one.targets(scenario)}
        parts = [source.machine] if len(here) < len(shown) else []
        mine = {(source.engine(scenario, target), target) for target in source.targets(scenario)}
        parts += sorted({engine for engine, _ in mine}) if len(engines) > 1 else []
        others = [one for one in here if one.results is not source.results] if by_file else []
        shared = ((one.engine(scenario, target), target) in mine for one in others for target in one.targets(scenario))
        return [*parts, *([source.name] if any(shared) else [])]

    def credits(self, scenario: str, shown: Sequence[Source] | None = None) -> str:
        """Which files, and of which machines, are `shown` (without: all that `having` has), and which are left out."""
        found = self.having(scenario) if shown is None else shown
        told = [
            f"{one.name}, {one.machine}" + " (what is not in the file before)" * bool(one.repeated) for one in found
        ]
        results = [one.results for one in found]
        left = [one for one in self.sources if one.of(scenario) and not any(one.results is each for each in results)]
        names = ", ".join(f"{one.name}, {one.machine}" for one in left)
        why = "left out, for it has nothing else of this worker" if shown is None else "left out"
        return "; ".join([*told, *([f"{why}: {names}"] if left else [])])


def _without_repeats(sources: Sequence[Source], scenario: str) -> list[Source]:
    def places(source: Source, *, ours: bool = False) -> frozenset[Place]:
        found = (one for one in source.of(scenario) if not ours or _is_ours(one.target))
        return frozenset(Place(source.engine(scenario, one.target), one.target, one.point) for one in found)

    def count(source: Source) -> tuple[int, int]:
        found = source.of(scenario)
        return sum(_is_ours(one.target) for one in found), len(found)

    taken: list[Source] = []
    known: frozenset[Place] = frozenset()
    for source in sorted(sources, key=count, reverse=True):  # of equals the first, as they were named
        if not taken or places(source, ours=True) - known:
            taken.append(replace(source, repeated=places(source) & known))
            known |= places(source)
    return taken


def _is_ours(target: str) -> bool:
    return target.startswith("ours") and plain(target) != "ours-fake"


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
