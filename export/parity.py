"""Stage 5, the gate: the bundle must answer what the Hugging Face model answers.

The reference is the transformers model in PyTorch, float32, one input at a time and without padding, with what the task
puts into the graph written a second time. The candidates are the graphs of the bundle, opened and run by the worker's
own code, alone and in mixed batches. What is compared, and by which measures, the task says (export/tasks).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.bundle import open_bundle
from engine.tensors import Row
from export.errors import ParityFailed
from export.gate.answers import Answer, answers_of, batches_of, summary_of
from export.gate.cases import cases_of, sample_cases
from export.gate.limits import GateLimits
from export.gate.measures import Measure
from export.precision.candidates import Candidate, of_bundle, portable
from export.source import Source

if TYPE_CHECKING:
    from engine.tasks.base import Json

_WORST_SHOWN = 10
_SAMPLE = "sample "
_ENOUGH = 8
"""A check with `stop_early` ends after so many answers over a limit; the next one compares these rows first."""


class Gate:
    """The comparisons that a bundle must pass, with the reference's answers, which are computed once."""

    def __init__(self, source: Source, folder: Path, payloads: Sequence[tuple[str, Json]] = ()) -> None:
        self._source = source
        self._folder = folder
        self._payloads = payloads
        self._cases = cases_of(source, open_bundle(folder), payloads)
        self._suspects: list[str] = []
        self.badness = 0.0
        """By the first measure, of the worst answer of the last check; not rounded as in parity.json."""

    def add_samples(self) -> None:
        """Also compare on the task's samples: many rows whose reference is the portable fp32 graph, which has passed.

        For precisions that answer differently by design, where a handful of rows does not show the worst.
        """
        if any(case.by_graph and case.label.startswith(_SAMPLE) for case in self._cases):
            return
        samples = self._source.task.samples(self._source)
        self._add((f"{_SAMPLE}{number}", payload) for number, payload in enumerate(samples))

    def add_payloads(self) -> None:
        """Also compare on those of the user's payloads that only the worker can make rows of, in the same way."""
        labels = {case.label for case in self._cases}
        self._add((label, payload) for label, payload in self._payloads if label not in labels)

    def _add(self, payloads: Iterable[tuple[str, Json]]) -> None:
        bundle, payloads = open_bundle(self._folder), list(payloads)
        for name in bundle.manifest.graphs if payloads else ():
            self._cases += sample_cases(portable(bundle, name), name, payloads)

    @property
    def measures(self) -> Sequence[Measure]:
        """Of rows; the first is what candidates are ranked by."""
        return self._source.task.measures

    @property
    def rows(self) -> Sequence[Row]:
        """What is compared on."""
        return [case.row for case in self._cases]

    def check(
        self,
        limits: GateLimits | None = None,
        candidates: Sequence[Candidate] | None = None,
        *,
        stop_early: bool = False,
    ) -> dict[str, Any]:
        """Compare `candidates`, or else the bundle in its precision, with the reference; the figures for parity.json.

        Raises ParityFailed with the worst rows when one is over a limit; with `stop_early` soon after the first one,
        the worst of earlier checks being compared before the others.
        """
        source = self._source
        bundle = open_bundle(self._folder)
        if candidates is None:
            candidates = [one for name in bundle.manifest.graphs for one in of_bundle(bundle, name)]
        limits = limits or GateLimits()
        precision = candidates[0].view.manifest.precision
        measures, of_all = held = limits.of(source.task, precision)
        told = replace(limits, reserve=0.0).of(source.task, precision)
        answers: dict[str, list[Answer]] = {}
        together: dict[str, dict[str, float]] = {}
        for one in candidates:
            answers[one.file] = self._compare(one, measures, stop_early)
            together[one.file] = _together(answers[one.file], source, of_all)
        task, unit = source.task, source.task.unit.removesuffix("s")
        first = task.measures[0]
        self.badness = max(first.badness(one.figures[0]) for found in answers.values() for one in found)
        longest = max(case.row.length for case in self._cases)
        samples = sum(case.by_graph for case in self._cases)
        figures = {
            "reference": f"transformers in PyTorch, float32, plain attention, one {unit} at a time, without padding",
            "limits": {measure.key: measure.limit for group in told for measure in group},
            **({"reserve": limits.reserve} if held != told else {}),
            **({"overridden": sorted(limits.named(task))} if limits.given else {}),
            task.unit: len(self._cases),
            **({"of_these_compared_with_fp32.onnx": samples} if samples else {}),
            **({f"longest_{unit}_{task.length_unit}": longest} if task.length_unit else {}),
            "graphs": {
                file: {**summary_of(found, measures), **_rounded(together[file], of_all)}
                for file, found in answers.items()
            },
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
        answers = answers_of(self._source, candidate, [[case] for case in self._cases[-rows:]])
        found = [first.badness(answer.figures[0]) for answer in answers]
        return sum(found) / len(found)

    def _compare(self, candidate: Candidate, measures: Sequence[Measure], stop_early: bool) -> list[Answer]:
        cases = [case for case in self._cases if case.row.graph == candidate.graph]
        order = {label: place for place, label in enumerate(self._suspects)}
        batches = list(batches_of(cases))
        if stop_early:  # those that were far off before come first; the sort is stable
            batches.sort(key=lambda batch: min(order.get(case.label, len(order)) for case in batch))
        found: list[Answer] = []
        failed = 0
        for answer in answers_of(self._source, candidate, batches):
            found.append(answer)
            failed += not answer.passes(measures)
            if stop_early and failed >= _ENOUGH:
                break
        return found

    def _judge(self, answers: Sequence[Answer], measures: Sequence[Measure]) -> None:
        ordered = sorted(answers, key=lambda one: -one.badness(measures))
        failed = [one for one in ordered if not one.passes(measures)]
        if failed:
            self._suspects = list(dict.fromkeys([one.case.label for one in failed] + self._suspects))
            required = " and ".join(measure.required() for measure in measures)
            raise ParityFailed(
                f"{len(failed)} of {len(answers)} answers differ from the reference (required: {required})",
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
        said.append(measure.told(measure.worst(values)))
    return ", ".join(said)


def _together(answers: Sequence[Answer], source: Source, measures: Sequence[Measure]) -> dict[str, float]:
    if not measures:
        return {}
    once = {id(one.case): one for one in answers if one.found is not None}.values()
    figures = source.task.compare_all(
        source, [one.case.expected for one in once], [one.found for one in once if one.found is not None]
    )
    return {measure.key: value for measure, value in zip(measures, figures, strict=True)}


def _rounded(figures: Mapping[str, float], measures: Sequence[Measure]) -> dict[str, float]:
    """For parity.json; what is judged is not rounded."""
    return {measure.key: measure.rounded(figures[measure.key]) for measure in measures if measure.key in figures}


def _judge_together(found: Mapping[str, Mapping[str, float]], source: Source, measures: Sequence[Measure]) -> None:
    for file, figures in found.items():
        failed = [measure for measure in measures if not measure.passes(figures[measure.key])]
        if failed:
            required = " and ".join(measure.required() for measure in failed)
            raise ParityFailed(
                f"the {source.task.unit} together differ from the reference (required: {required})",
                [("all", Path(file).name, *(measure.shown(figures[measure.key]) for measure in failed))],
                (source.task.unit, "graph", *(measure.column or measure.name for measure in failed)),
            )
