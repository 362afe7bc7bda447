"""Stage 5, the gate: the bundle must answer what the Hugging Face model answers.

The reference is the transformers model in PyTorch, float32, one input at a time and without padding, with what the task
puts into the graph written a second time. The candidates are the graphs of the bundle, opened and run by the worker's
own code, alone and in mixed batches. What is compared, and by which measures, the task says (export/tasks).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.bundle import Bundle, open_bundle
from engine.feed import run_rows
from engine.tasks import load_task
from engine.tensors import Arrays, Row, TensorSpec
from export.errors import ParityFailed
from export.measures import Measure
from export.source import Source, quiet

_BATCH_SIZES = (3, 5, 2)
_WORST_SHOWN = 10
_SAMPLE = "sample "


@dataclass(frozen=True)
class _Case:
    label: str
    row: Row
    expected: Arrays


@dataclass(frozen=True)
class _Answer:
    """One answer of one graph, and how far it is off: a figure for each measure."""

    label: str
    where: str
    figures: Sequence[float]

    def badness(self, measures: Sequence[Measure]) -> float:
        return max(measure.badness(value) for measure, value in zip(measures, self.figures, strict=True))

    def passes(self, measures: Sequence[Measure]) -> bool:
        return all(measure.passes(value) for measure, value in zip(measures, self.figures, strict=True))

    def shown(self, measures: Sequence[Measure]) -> tuple[str, ...]:
        figures = (measure.shown(value) for measure, value in zip(measures, self.figures, strict=True))
        return (self.label, self.where, *figures)


class Gate:
    """The comparisons that a bundle must pass, with the reference's answers, which are computed once."""

    def __init__(self, source: Source, folder: Path) -> None:
        self._source = source
        self._folder = folder
        self._cases = _cases(source, open_bundle(folder))

    def add_samples(self) -> None:
        """Also compare on the task's samples: many rows whose reference is the portable fp32 graph, which has passed.

        For precisions that answer differently by design, where a handful of rows does not show the worst.
        """
        bundle = open_bundle(self._folder)
        graph = bundle.manifest.graphs["model"]
        portable = {**bundle.manifest.graphs, "model": replace(graph, fused={})}
        exact = replace(bundle, manifest=replace(bundle.manifest, graphs=portable, precision="fp32"))
        self._cases += _sample_cases(self._source, exact)

    @property
    def rows(self) -> Sequence[Row]:
        """What is compared on."""
        return [case.row for case in self._cases]

    def check(self, threshold: float | None = None) -> dict[str, Any]:
        """Compare the bundle, in its precision, with the reference; the figures for parity.json.

        `threshold` replaces the limit of the task's first measure. Raises ParityFailed with the worst rows when one is
        over a limit.
        """
        source, bundle, cases = self._source, open_bundle(self._folder), self._cases
        precision = bundle.manifest.precision
        first, *others = source.task.measures
        measures = [first.at(precision, threshold), *(measure.at(precision) for measure in others)]
        answers = {
            file: list(_answers(source, view, [case for case in cases if case.row.graph == name], file, name))
            for name in bundle.manifest.graphs
            for file, view in _views(bundle, name)
        }
        _judge([one for found in answers.values() for one in found], source, measures)
        task, one = source.task, source.task.unit.removesuffix("s")
        longest = max(case.row.length for case in cases)
        samples = sum(case.label.startswith(_SAMPLE) for case in cases)
        return {
            "reference": f"transformers in PyTorch, float32, plain attention, one {one} at a time, without padding",
            "limits": {measure.key: measure.limit for measure in measures},
            task.unit: len(cases),
            **({"of_these_compared_with_fp32.onnx": samples} if samples else {}),
            **({f"longest_{one}_{task.length_unit}": longest} if task.length_unit else {}),
            "graphs": {file: _summary(found, measures) for file, found in answers.items()},
        }

    def mean_badness(self, rows: int) -> float:
        """How far off the bundle is by the first measure, on average over the last `rows` of the cases, one by one."""
        bundle, first = open_bundle(self._folder), self._source.task.measures[0]
        file, view = next(_views(bundle))
        answers = _answers(self._source, view, self._cases[-rows:], file, one_by_one=True)
        found = [first.badness(answer.figures[0]) for answer in answers]
        return sum(found) / len(found)


def worst(source: Source, figures: dict[str, Any]) -> str:
    """The worst figures of all graphs, in words for the screen."""
    graphs = figures["graphs"].values()
    said = []
    for measure in source.task.measures:
        values = [graph[measure.key] for graph in graphs]
        said.append(measure.told(min(values) if measure.at_least else max(values)))
    return ", ".join(said)


def _judge(answers: Sequence[_Answer], source: Source, measures: Sequence[Measure]) -> None:
    ordered = sorted(answers, key=lambda one: -one.badness(measures))
    failed = [one for one in ordered if not one.passes(measures)]
    if failed:
        required = " and ".join(measure.required() for measure in measures)
        raise ParityFailed(
            f"{len(failed)} of {len(answers)} answers differ from the reference: {required} are required",
            [one.shown(measures) for one in failed[:_WORST_SHOWN]],
            (source.task.unit.removesuffix("s"), "graph", *(measure.column or measure.name for measure in measures)),
        )


def _summary(answers: Sequence[_Answer], measures: Sequence[Measure]) -> dict[str, Any]:
    summary: dict[str, Any] = {"answers": len(answers)}
    for number, measure in enumerate(measures):
        values = [one.figures[number] for one in answers]
        summary[measure.key] = measure.rounded(min(values) if measure.at_least else max(values))
        if measure.at_least:
            summary[f"mean_{measure.name}"] = measure.rounded(sum(values) / len(values))
    return summary


def _views(bundle: Bundle, name: str = "model") -> Iterator[tuple[str, Bundle]]:
    """The bundle as it is, which runs the fused graph, and as if it had the portable graph alone."""
    graph, precision = bundle.manifest.graphs[name], bundle.manifest.precision
    if precision in graph.fused:
        yield graph.fused[precision], bundle
    if precision not in graph.onnx:
        return
    graphs = {**bundle.manifest.graphs, name: replace(graph, fused={})}
    yield graph.onnx[precision], replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))


def _answers(
    source: Source, bundle: Bundle, cases: Sequence[_Case], file: str, name: str = "model", one_by_one: bool = False
) -> Iterator[_Answer]:
    engine = OnnxRuntimeEngine(bundle, name, provider="cpu")
    try:
        engine.warm_up()
        for batch in [[case] for case in cases] if one_by_one else _batches(cases):
            outputs = run_rows(engine, [case.row for case in batch])
            for case, output in zip(batch, outputs, strict=True):
                where = f"{Path(file).name}, batch of {len(batch)}"
                found = {spec.name: _without_padding(output[spec.name], spec, case.row) for spec in engine.outputs}
                yield _Answer(case.label, where, source.task.compare(source, case.expected, found))
    finally:
        engine.close()


def _without_padding(values: Any, spec: TensorSpec, row: Row) -> Any:
    axis = spec.length_axis
    return values if axis is None else values[(*(slice(None),) * (axis - 1), slice(row.length))]


def _batches(cases: Sequence[_Case]) -> Iterator[Sequence[_Case]]:
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


def _cases(source: Source, bundle: Bundle) -> list[_Case]:
    """Rows as the worker makes them, each with the reference's answer."""
    import torch

    task = load_task(bundle)
    model = source.load_model()
    cases = []
    with quiet(), torch.inference_mode():
        for probe in source.task.probes(source):
            rows = task.preprocess(task.parse(probe.payload))
            for row, inputs in zip(rows, probe.inputs, strict=True):
                expected = source.task.reference(source, model, inputs)
                if expected is not None:
                    cases.append(_Case(probe.label, row, expected))
    return cases


def _sample_cases(source: Source, exact: Bundle) -> list[_Case]:
    """The task's samples, with the answers of the bundle as `exact` runs it."""
    task, engine = load_task(exact), OnnxRuntimeEngine(exact, "model", provider="cpu")
    cases = []
    try:
        for number, payload in enumerate(source.task.samples(source)):
            for row in task.preprocess(task.parse(payload)):
                (output,) = run_rows(engine, [row])
                found = {spec.name: _without_padding(output[spec.name], spec, row) for spec in engine.outputs}
                cases.append(_Case(f"{_SAMPLE}{number}", row, found))
    finally:
        engine.close()
    return cases
