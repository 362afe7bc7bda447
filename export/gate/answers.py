"""What a graph answers to the gate's rows, alone and in mixed batches, and how far off it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.batching.feed import run_rows
from engine.errors import EngineError
from engine.tensors import Arrays
from export.command.said import first_line
from export.errors import Refused, refusal_of
from export.gate.cases import Case, without_padding
from export.gate.measures import Measure
from export.own_task import file_of
from export.precision.candidates import Candidate
from export.source import Source

_BATCH_SIZES = (3, 5, 2)


@dataclass(frozen=True)
class Answer:
    """One answer of one graph, and how far it is off: a figure for each measure."""

    case: Case
    where: str
    figures: Sequence[float]
    found: Arrays | None = None
    """Kept only where a task compares all answers together."""

    def badness(self, measures: Sequence[Measure]) -> float:
        """Sorts the worst first."""
        return max(measure.badness(value) for measure, value in zip(measures, self.figures, strict=True))

    def passes(self, measures: Sequence[Measure]) -> bool:
        """Whether every figure keeps its limit."""
        return all(measure.passes(value) for measure, value in zip(measures, self.figures, strict=True))

    def shown(self, measures: Sequence[Measure]) -> tuple[str, ...]:
        """For the table of a gate that failed."""
        figures = (measure.shown(value) for measure, value in zip(measures, self.figures, strict=True))
        return (self.case.label, self.where, *figures)


def answers_of(source: Source, candidate: Candidate, batches: Iterable[Sequence[Case]]) -> Iterator[Answer]:
    """What `candidate` answers to `batches`, one by one."""
    engine = OnnxRuntimeEngine(candidate.view, candidate.graph)
    name, keeps = Path(candidate.file).name, bool(source.task.measures_of_all)
    try:
        engine.warm_up()
        for batch in batches:
            outputs = run_rows(engine, [case.row for case in batch])
            for case, output in zip(batch, outputs, strict=True):
                found = {spec.name: without_padding(output[spec.name], spec, case.row) for spec in engine.outputs}
                figures = _figures(source, case.expected, found)
                yield Answer(case, f"{name}, batch of {len(batch)}", figures, found if keeps else None)
    except EngineError as error:
        said = f"the graph of {source.model} ({source.architecture}) does not run: {first_line(error)}"
        raise refusal_of(error) or Refused(f"{said}; try another --exporter") from error
    finally:
        engine.close()


def _figures(source: Source, expected: Arrays, found: Arrays) -> Sequence[float]:
    """What the task's `compare` says. Raises Refused where it is not one figure for each of its measures."""
    task, figures = source.task, source.task.compare(source, expected, found)
    if not isinstance(figures, Sequence) or len(figures) != len(task.measures):
        raise Refused(
            f"{file_of(task)}.compare must return {len(task.measures)} figures, one for each of `measures`; it "
            f"returned {figures!r}"
        )
    return figures


def batches_of(cases: Sequence[Case]) -> Iterator[Sequence[Case]]:
    """Every case alone, then in mixed batches; the longest goes with a single other one, for the memory's sake."""
    yield from ([case] for case in cases)
    *others, longest = sorted(cases, key=lambda case: case.row.length)
    yield [*others[:1], longest]
    rest = iter([case for case in cases if case is not longest])
    for size in cycle(_BATCH_SIZES):
        batch = list(islice(rest, size))
        if not batch:
            return
        yield batch


def summary_of(answers: Sequence[Answer], measures: Sequence[Measure]) -> dict[str, Any]:
    """The worst and the mean figures, for parity.json."""
    summary: dict[str, Any] = {"answers": len(answers)}
    for number, measure in enumerate(measures):
        values = [one.figures[number] for one in answers]
        summary[measure.key] = measure.rounded(measure.worst(values))
        if measure.at_least:
            summary[f"mean_{measure.name}"] = measure.rounded(sum(values) / len(values))
    return summary
