"""Stage 5, the gate: the bundle must answer what the Hugging Face model answers.

The reference is the transformers model in PyTorch, float32, one input at a time and without padding, with what the task
puts into the graph written a second time. The candidates are the graphs of the bundle, opened and run by the worker's
own code, alone and in mixed batches. What is compared, and by which measures, the task says (export/tasks).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.bundle import Bundle, open_bundle
from engine.feed import run_rows
from engine.tasks import load_task
from engine.tensors import Arrays, Row, TensorSpec
from export.errors import ParityFailed, Refused
from export.measures import Measure
from export.precision_options import FIRST
from export.source import Source, quiet

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from export.tasks.base import ExportTask

_BATCH_SIZES = (3, 5, 2)
_WORST_SHOWN = 10
_SAMPLE = "sample "
_ENOUGH = 8
"""Answers over a limit, after which a check that may stop early does: enough to compare those first next time."""


@dataclass(frozen=True)
class _Case:
    label: str
    row: Row
    expected: Arrays
    by_graph: bool = False
    """Whether the bundle's own fp32 graph answered, instead of the model in PyTorch."""


@dataclass(frozen=True)
class _Answer:
    """One answer of one graph, and how far it is off: a figure for each measure."""

    case: _Case
    where: str
    figures: Sequence[float]
    found: Arrays | None = None
    """Kept only where a task compares all answers together."""

    def badness(self, measures: Sequence[Measure]) -> float:
        return max(measure.badness(value) for measure, value in zip(measures, self.figures, strict=True))

    def passes(self, measures: Sequence[Measure]) -> bool:
        return all(measure.passes(value) for measure, value in zip(measures, self.figures, strict=True))

    def shown(self, measures: Sequence[Measure]) -> tuple[str, ...]:
        figures = (measure.shown(value) for measure, value in zip(measures, self.figures, strict=True))
        return (self.case.label, self.where, *figures)


@dataclass(frozen=True)
class Candidate:
    """A graph to compare: its file's name in the bundle, and the bundle as if it had that one only."""

    graph: str
    file: str
    view: Bundle


@dataclass(frozen=True)
class Limits:
    """What a check is held to. `given` are limits that were asked for, by name; the empty name is the first measure's.

    `reserve` is the share of every limit that must be left over, for a search that would otherwise stop at the edge.
    """

    given: Mapping[str, float] = field(default_factory=dict)
    reserve: float = 0.0

    def named(self, task: ExportTask) -> dict[str, float]:
        """What was asked for, by the names that stand in parity.json."""
        known = [*task.measures, *task.measures_of_all]
        names = {FIRST: known[0].key, **{measure.name: measure.key for measure in known}}
        return {names.get(name, name): limit for name, limit in self.given.items()}

    def of(self, task: ExportTask, precision: str) -> tuple[list[Measure], list[Measure]]:
        """The task's measures of rows, and of all rows together, with their limits. Raises Refused."""
        known = [*task.measures, *task.measures_of_all]
        given = self.named(task)
        if unknown := set(given) - {measure.key for measure in known}:
            raise Refused(
                f"--parity-threshold {min(unknown)}: {task.tag} has {', '.join(measure.key for measure in known)}"
            )
        held = [measure.at(precision, given.get(measure.key), self.reserve) for measure in known]
        return held[: len(task.measures)], held[len(task.measures) :]


class Gate:
    """The comparisons that a bundle must pass, with the reference's answers, which are computed once."""

    def __init__(self, source: Source, folder: Path, payloads: Sequence[tuple[str, Json]] = ()) -> None:
        self._source = source
        self._folder = folder
        self._payloads = payloads
        self._cases = _cases(source, open_bundle(folder), payloads)
        self._suspects: list[str] = []

    def add_samples(self) -> None:
        """Also compare on the task's samples: many rows whose reference is the portable fp32 graph, which has passed.

        For precisions that answer differently by design, where a handful of rows does not show the worst.
        """
        samples = self._source.task.samples(self._source)
        self._add((f"{_SAMPLE}{number}", payload) for number, payload in enumerate(samples))

    def add_payloads(self) -> None:
        """Also compare on those of the user's payloads that only the worker can make rows of, in the same way."""
        labels = {case.label for case in self._cases}
        self._add((label, payload) for label, payload in self._payloads if label not in labels)

    def _add(self, payloads: Iterable[tuple[str, Json]]) -> None:
        bundle, payloads = open_bundle(self._folder), list(payloads)
        for name in bundle.manifest.graphs if payloads else ():
            self._cases += _sample_cases(self._source, portable(bundle, name), name, payloads)

    @property
    def rows(self) -> Sequence[Row]:
        """What is compared on."""
        return [case.row for case in self._cases]

    def check(
        self, limits: Limits | None = None, candidates: Sequence[Candidate] | None = None, *, stop_early: bool = False
    ) -> dict[str, Any]:
        """Compare `candidates`, or else the bundle in its precision, with the reference; the figures for parity.json.

        Raises ParityFailed with the worst rows when one is over a limit; with `stop_early` soon after the first one,
        the worst of earlier checks being compared before the others.
        """
        source = self._source
        bundle = open_bundle(self._folder)
        if candidates is None:
            candidates = [one for name in bundle.manifest.graphs for one in of_bundle(bundle, name)]
        limits = limits or Limits()
        precision = candidates[0].view.manifest.precision
        measures, of_all = limits.of(source.task, precision)
        told = replace(limits, reserve=0.0).of(source.task, precision)
        answers: dict[str, list[_Answer]] = {}
        together: dict[str, dict[str, float]] = {}
        for one in candidates:
            answers[one.file] = self._compare(one, measures, stop_early)
            together[one.file] = _together(answers[one.file], source, of_all)
        task, unit = source.task, source.task.unit.removesuffix("s")
        longest = max(case.row.length for case in self._cases)
        samples = sum(case.by_graph for case in self._cases)
        figures = {
            "reference": f"transformers in PyTorch, float32, plain attention, one {unit} at a time, without padding",
            "limits": {measure.key: measure.limit for held in told for measure in held},
            **({"reserve": limits.reserve} if limits.reserve else {}),
            **({"overridden": sorted(limits.named(task))} if limits.given else {}),
            task.unit: len(self._cases),
            **({"of_these_compared_with_fp32.onnx": samples} if samples else {}),
            **({f"longest_{unit}_{task.length_unit}": longest} if task.length_unit else {}),
            "graphs": {file: {**_summary(found, measures), **together[file]} for file, found in answers.items()},
        }
        try:
            self._judge([one for found in answers.values() for one in found], measures)
            _judge_together(together, source, of_all)
        except ParityFailed as failure:
            failure.figures = figures
            raise
        return figures

    def mean_badness(self, rows: int, candidate: Candidate) -> float:
        """How far off it is by the first measure, on average over the last `rows` of the cases, one by one."""
        first = self._source.task.measures[0]
        answers = _answers(self._source, candidate, [[case] for case in self._cases[-rows:]])
        found = [first.badness(answer.figures[0]) for answer in answers]
        return sum(found) / len(found)

    def _compare(self, candidate: Candidate, measures: Sequence[Measure], stop_early: bool) -> list[_Answer]:
        cases = [case for case in self._cases if case.row.graph == candidate.graph]
        order = {label: place for place, label in enumerate(self._suspects)}
        batches = list(_batches(cases))
        if stop_early:  # those that were far off before come first; the sort is stable
            batches.sort(key=lambda batch: min(order.get(case.label, len(order)) for case in batch))
        found: list[_Answer] = []
        failed = 0
        for answer in _answers(self._source, candidate, batches):
            found.append(answer)
            failed += not answer.passes(measures)
            if stop_early and failed >= _ENOUGH:
                break
        return found

    def _judge(self, answers: Sequence[_Answer], measures: Sequence[Measure]) -> None:
        ordered = sorted(answers, key=lambda one: -one.badness(measures))
        failed = [one for one in ordered if not one.passes(measures)]
        if failed:
            self._suspects = list(dict.fromkeys([one.case.label for one in failed] + self._suspects))
            required = " and ".join(measure.required() for measure in measures)
            raise ParityFailed(
                f"{len(failed)} of {len(answers)} answers differ from the reference: {required} are required",
                [one.shown(measures) for one in failed[:_WORST_SHOWN]],
                (
                    self._source.task.unit.removesuffix("s"),
                    "graph",
                    *(measure.column or measure.name for measure in measures),
                ),
            )


def worst(source: Source, figures: dict[str, Any]) -> str:
    """The worst figures of all graphs, in words for the screen."""
    graphs = figures["graphs"].values()
    said = []
    for measure in (*source.task.measures, *source.task.measures_of_all):
        values = [graph[measure.key] for graph in graphs if measure.key in graph]
        said.append(measure.told(min(values) if measure.at_least else max(values)))
    return ", ".join(said)


def _together(answers: Sequence[_Answer], source: Source, measures: Sequence[Measure]) -> dict[str, float]:
    if not measures:
        return {}
    once = {id(one.case): one for one in answers if one.found is not None}.values()
    figures = source.task.compare_all(
        source, [one.case.expected for one in once], [one.found for one in once if one.found is not None]
    )
    return {measure.key: measure.rounded(value) for measure, value in zip(measures, figures, strict=True)}


def _judge_together(found: Mapping[str, Mapping[str, float]], source: Source, measures: Sequence[Measure]) -> None:
    for file, figures in found.items():
        failed = [measure for measure in measures if not measure.passes(figures[measure.key])]
        if failed:
            required = " and ".join(measure.required() for measure in failed)
            raise ParityFailed(
                f"the {source.task.unit} together differ from the reference: {required} are required",
                [("all", Path(file).name, *(measure.shown(figures[measure.key]) for measure in failed))],
                (source.task.unit, "graph", *(measure.column or measure.name for measure in failed)),
            )


def _summary(answers: Sequence[_Answer], measures: Sequence[Measure]) -> dict[str, Any]:
    summary: dict[str, Any] = {"answers": len(answers)}
    for number, measure in enumerate(measures):
        values = [one.figures[number] for one in answers]
        summary[measure.key] = measure.rounded(min(values) if measure.at_least else max(values))
        if measure.at_least:
            summary[f"mean_{measure.name}"] = measure.rounded(sum(values) / len(values))
    return summary


def of_bundle(bundle: Bundle, name: str = "model") -> Iterator[Candidate]:
    """A graph as the bundle has it in its precision: the fused file, and as if it had the portable one alone."""
    graph, precision = bundle.manifest.graphs[name], bundle.manifest.precision
    if precision in graph.fused:
        yield Candidate(name, graph.fused[precision], bundle)
    if precision in graph.onnx:
        yield Candidate(name, graph.onnx[precision], portable(bundle, name, precision))


def portable(bundle: Bundle, name: str, precision: str = "fp32") -> Bundle:
    """`bundle` as if it had the portable graph `name` of `precision` alone."""
    graphs = {**bundle.manifest.graphs, name: replace(bundle.manifest.graphs[name], fused={})}
    return replace(bundle, manifest=replace(bundle.manifest, graphs=graphs, precision=precision))


def candidate_of(folder: Path, precision: str, path: Path, *, file: str = "", name: str = "model") -> Candidate:
    """The graph at `path`, below `folder`, as ONNX Runtime runs it on the CPU without changing it.

    It need not be in the manifest. `file` is the name that its figures get.
    """
    bundle = open_bundle(folder)
    relative = path.relative_to(folder).as_posix()
    graph = replace(bundle.manifest.graphs[name], fused={precision: relative})
    files = {**bundle.manifest.files, relative: (0, "")}
    graphs = {**bundle.manifest.graphs, name: graph}
    manifest = replace(bundle.manifest, graphs=graphs, precision=precision, files=files)
    return Candidate(name, file or relative, replace(bundle, manifest=manifest))


def _answers(source: Source, candidate: Candidate, batches: Iterable[Sequence[_Case]]) -> Iterator[_Answer]:
    engine = OnnxRuntimeEngine(candidate.view, candidate.graph, provider="cpu")
    name, keeps = Path(candidate.file).name, bool(source.task.measures_of_all)
    try:
        engine.warm_up()
        for batch in batches:
            outputs = run_rows(engine, [case.row for case in batch])
            for case, output in zip(batch, outputs, strict=True):
                found = {spec.name: _without_padding(output[spec.name], spec, case.row) for spec in engine.outputs}
                figures = source.task.compare(source, case.expected, found)
                kept = {key: np.array(values) for key, values in found.items()} if keeps else None
                yield _Answer(case, f"{name}, batch of {len(batch)}", figures, kept)
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


def _cases(source: Source, bundle: Bundle, payloads: Sequence[tuple[str, Json]]) -> list[_Case]:
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
        for label, payload in payloads:
            rows = task.preprocess(task.parse(payload))
            for row, inputs in zip(rows, source.task.inputs_of(source, payload, rows) or (), strict=False):
                expected = source.task.reference(source, model, inputs)
                if expected is not None:
                    cases.append(_Case(label, row, expected))
    return cases


def _sample_cases(source: Source, exact: Bundle, name: str, payloads: Iterable[tuple[str, Json]]) -> list[_Case]:
    """Rows of `payloads` for graph `name`, with the answers of the bundle as `exact` runs it."""
    task, engine = load_task(exact), OnnxRuntimeEngine(exact, name, provider="cpu")
    cases = []
    try:
        for label, payload in payloads:
            for row in task.preprocess(task.parse(payload)):
                if row.graph != name:
                    continue
                (output,) = run_rows(engine, [row])
                # Copies: what an engine returns is valid until its next run.
                found = {spec.name: np.array(_without_padding(output[spec.name], spec, row)) for spec in engine.outputs}
                cases.append(_Case(label, row, found, by_graph=True))
    finally:
        engine.close()
    return cases
