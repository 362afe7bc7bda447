"""All that there is to say, as one HTML page that needs no network and no script, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.measure import markdown
from benchmarks.report import compared, targets
from benchmarks.report.headline import cards
from benchmarks.report.plot import COLOURS, Absent, Plot, inline
from benchmarks.report.stored import Source, Stored

_HOW = {
    "accuracy": "Every precision answers the same texts as this worker's engine in fp32; compared row by row.",
    "batching": "One worker; tokens and engine runs are counted by itself.",
    "coldstart": "A process is started with a job already waiting; worker and floor take turns.",
    "int8": "Engines alone in turns: fp32, int8 with and without calibrated scales; cosines with fp32 on fresh texts.",
    "latency": "One engine in one process: warm-up, then runs of one shape for a fixed time; percentiles of all runs.",
    "load": "One worker behind an emulated endpoint: closed loops, then open loops with Poisson arrivals.",
    "memory": "Resident and proportional memory of all processes of a worker, after its warm-up and under load.",
    "peers": "Each in its own process, on the same texts, in turn: workers behind an emulated endpoint, "
    "servers over HTTP, libraries over a pipe.",
    "soak": "One worker, a long mix of jobs; memory, files and threads at both ends.",
    "tasks": "Each task's stages on one thread, one job after the other.",
    "throughput": "Engines alone over a grid of batches and lengths.",
}
_FACTS = (
    ("gpu", "GPU"), ("driver", "driver"), ("cuda", "CUDA"), ("tensorrt", "TensorRT"), ("processor", "processor"),
    ("cpus", "CPUs"), ("python", "Python"),
)  # fmt: skip
_TOLD_APART = ("date", "commit", "versions", "targets")


@dataclass(frozen=True)
class Machine:
    """What ran on one machine with the same versions."""

    name: str
    facts: Sequence[tuple[str, str]]
    files: Sequence[File]


@dataclass(frozen=True)
class File:
    """One results file, as the page describes it."""

    name: str
    when: str
    how: Sequence[tuple[str, str]]
    """Scenario and how it is measured, with what the command was told."""


def html(known: Stored, made: Sequence[Plot | Absent]) -> str:
    """The page."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    plots = [one for one in made if isinstance(one, Plot)]
    absent = [one for one in made if isinstance(one, Absent)]
    return environment.get_template("page.html.j2").render(
        cards=cards(known),
        cards_source=f"{peers.name}, {peers.machine}" if (peers := compared.chosen(known)) else "",
        peers_command=next((one.command for one in absent if one.name == compared.SCENARIO), compared.COMMAND),
        plots=plots,
        drawings={one.name: (inline(one, narrow=False), inline(one, narrow=True)) for one in plots},
        absent=absent,
        environments=_machines(known),
        unread=known.unread,
        colours=COLOURS,
        machines=list(dict.fromkeys(source.machine for source in known.sources)),
        dates=sorted({str(source.results.environment["date"]) for source in known.sources if _dated(source)}),
    )


def _dated(source: Source) -> bool:
    return bool(source.results.environment.get("date"))


def _machines(known: Stored) -> list[Machine]:
    """Files of the same machine and versions together."""
    grouped: dict[tuple[str, tuple[tuple[str, str], ...]], list[File]] = {}
    for source in known.sources:
        grouped.setdefault((source.machine, tuple(_facts(source))), []).append(_file(source))
    return [Machine(name, facts, files) for (name, facts), files in grouped.items()]


def _facts(source: Source) -> Iterator[tuple[str, str]]:
    known = source.results.environment
    yield from ((label, _value(known[key])) for key, label in _FACTS if known.get(key) is not None)
    yield from _others({key: value for key, value in known.items() if key not in (*dict(_FACTS), *_TOLD_APART)})
    if known.get("versions"):
        yield "versions", _versions(known["versions"])


def _file(source: Source) -> File:
    known = source.results.environment
    commit = f"commit {known['commit']}" if known.get("commit") else ""
    theirs = {f"of {target}": _versions(found) for target, found in (known.get("targets") or {}).items() if found}
    scenarios = dict.fromkeys(one.scenario for one in source.results.measurements)
    return File(
        source.name,
        ", ".join(filter(None, (str(known.get("date") or ""), commit))),
        [*((scenario, _told(source, scenario)) for scenario in scenarios), *theirs.items()],
    )


def _versions(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _told(source: Source, scenario: str) -> str:
    """How, how often, of whom, and with which options."""
    rounds = max(len(one.repeats) for one in source.results.of(scenario))
    who = "; ".join(targets.name(target) for target in source.targets(scenario))
    options = source.results.options.get(scenario, source.results.options)
    told = ", ".join(f"{name} {value}" for name, value in _others(options)) if isinstance(options, Mapping) else ""
    text = f"{_HOW.get(scenario, '')} {rounds} round{'s' * (rounds > 1)} of: {who}."
    return f"{text} Options: {told}.".strip() if told else text.strip()


def _others(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as name and text, those without a value left out."""
    for key, value in values.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _others(value, f"{name}: ")
        elif value not in (None, [], ""):
            yield name, _value(value)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def report_markdown(known: Stored, made: Sequence[Plot | Absent]) -> str:
    """The tables of the page, as Markdown."""
    parts = ["# Benchmark report", *(f"{sentence}" for sentence in known.unread)]
    parts.append(", ".join(f"{source.name}: {source.machine}" for source in known.sources) or "No results.")
    for one in made:
        parts.append(f"## {one.title}")
        if isinstance(one, Absent):
            parts.append(f"Not measured. This measures it: `{one.command}`")
        else:
            parts += [one.read, markdown(one.header, one.rows), f"From {one.source}."]
    return "\n\n".join(parts) + "\n"
