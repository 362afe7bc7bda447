"""The ladder of CPUs: int8 with scales that come with the activations, or with scales that were calibrated; else fp32.

Both forms of int8 are timed beside fp32 before either is searched: what is smoothed or kept in fp32 makes them slower,
never faster. The form that is faster is searched first, the other where nothing of it passes.

Measured on two cores with AVX-512 VNNI, in multiples of fp32 (`python -m benchmarks int8`): a ResNet-50 2.8 with
calibrated scales and 1.0 without, for only they reach a Conv, a ConvNeXt-tiny 2.8 and 1.4; a ViT-small 2.1 and 2.0, for
products with a matrix have kernels that find the scale as they go.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine.bundle import open_bundle
from export.candidates import Candidate, candidate_of, of_bundle
from export.dynamic_int8 import DynamicInt8
from export.errors import ParityFailed
from export.int8_gate import Int8Gate
from export.int8_search import Step, search
from export.ladder_static import search_static
from export.optimize import remove_graph
from export.parity import Gate
from export.parity_limits import GateLimits
from export.precision_options import AUTO
from export.rates import rates
from export.static_graphs import StaticInt8
from export.static_int8 import CPU
from export.trials import Climbed, Record, record_of
from export.write import choose

if TYPE_CHECKING:
    from engine.tensors import Row
    from export.optimize import Places

_WORTH = 1.05
"""Times fp32. What is hardly faster is not worth answers that differ."""

_STATIC_WORTH = 1.2
"""Times dynamic int8. Calibrated scales are right for rows like those that were calibrated on, and trying them takes
longer; and a machine's mood must not decide between the two, for equal recipes are to give equal graphs."""

_STATIC = "int8, static"


def climb_cpu(
    gate: Gate,
    folder: Path,
    files: Mapping[str, tuple[Path, Path, Places]],
    asked: str,
    limits: GateLimits,
    allow_failure: bool,
) -> Climbed:
    """The fastest precision of the CPU that passes. Raises ParityFailed where none does that was asked for."""
    outcome = Climbed("fp32", [])
    if len(files) > 1:
        outcome.records.append(Record("int8", False, 0.0, reason="int8 is for bundles of one graph"))
        return _fp32(outcome)
    gate.add_samples()
    portable, _, places = files["model"]
    work = folder / "work"
    int8 = DynamicInt8(portable, work, places, gate.rows)  # odd rows first: their activations are the largest
    static = StaticInt8(int8, CPU)
    forms: list[_Form] = [_Dynamic(gate, folder, int8, limits), _Static(gate, folder, static, limits)]
    last: ParityFailed | None = None
    for form, speed in _in_order(forms, folder, gate.rows, outcome.records):
        if asked == AUTO and speed[1] < _WORTH * speed[0]:
            outcome.records.append(Record(f"{form.name}: {Step()}", False, 0.0, reason=_slow(speed), more=_told(speed)))
            continue
        try:
            figures, step = form.search(outcome.records)
        except ParityFailed as failure:
            last = failure
            continue
        record = outcome.records[-1]
        if step != Step():
            speed = rates([_fp32_of(folder), candidate_of(folder, "int8", form.path)], _spread(gate.rows))
        record.more = {**record.more, **_told(speed)}
        if asked == AUTO and speed[1] < _WORTH * speed[0]:
            record.passed, record.reason = False, _slow(speed)
            continue
        return _chosen(outcome, folder, forms, form, figures, step)
    remove_graph(*(form.path for form in forms))
    if asked == AUTO or last is None:
        return _fp32(outcome)
    if not allow_failure:
        raise last
    choose(folder, "int8", int8.write(Step()))
    outcome.precision = "int8"
    outcome.figures, outcome.graphs = dict(last.figures), dict(last.figures["graphs"])
    outcome.failures.append(str(last))
    return outcome


class _Form(Protocol):
    """A form of int8: one graph, searched step by step."""

    name: str
    path: Path

    def first(self) -> Path | None:
        """A graph as fast as the first step's; None where it has no bytes."""

    def search(self, records: list[Record]) -> tuple[dict[str, Any], Step]:
        """The fastest step that passes, whose graph is written and whose record is the last. Raises ParityFailed."""


class _Dynamic:
    """Scales that come with the activations."""

    name = "int8"

    def __init__(self, gate: Gate, folder: Path, int8: DynamicInt8, limits: GateLimits) -> None:
        self._judge = Int8Gate(gate, limits)
        self._folder = folder
        self._int8 = int8
        self.path = int8.path

    def first(self) -> Path | None:
        """As _Form says."""
        return self._int8.write(Step())

    def search(self, records: list[Record]) -> tuple[dict[str, Any], Step]:
        """As _Form says."""
        told: dict[Step, Record] = {}

        def candidate(step: Step) -> Candidate:
            return candidate_of(self._folder, "int8", self._int8.write(step))

        def attempt(step: Step) -> dict[str, Any]:
            began = time.perf_counter()
            checked = self._judge.check(candidate(step))
            told[step] = record_of(f"{self.name}: {step}", began, checked, **_kept(step))
            records.append(told[step])
            if isinstance(checked, ParityFailed):
                raise checked
            return checked

        def gaining() -> Sequence[tuple[str, float]]:
            return self._judge.inputs(self._int8.gaining(), lambda one: candidate(Step((one,))))

        def ranked(smoothed: Step) -> Sequence[str]:
            return self._judge.matrices(self._int8.suffering(), lambda name: candidate(replace(smoothed, kept=(name,))))

        figures, step = search(attempt, gaining, ranked)
        if records[-1] is not told[step]:
            self._int8.write(step)
            records.append(records.pop(records.index(told[step])))
        return figures, step


class _Static:
    """Scales that were calibrated."""

    name = _STATIC

    def __init__(self, gate: Gate, folder: Path, static: StaticInt8, limits: GateLimits) -> None:
        self._gate = gate
        self._folder = folder
        self._limits = limits
        self._static = static
        self.path = self._static.path

    def first(self) -> Path | None:
        """As _Form says."""
        return self._static.untuned() if self._static.products() else None

    def search(self, records: list[Record]) -> tuple[dict[str, Any], Step]:
        """As _Form says."""
        figures, step, method = search_static(self._gate, self._folder, self._static, self._limits, self.name, records)
        self._static.write(step, method)
        return figures, step


def _in_order(
    forms: Sequence[_Form], folder: Path, rows: Sequence[Row], records: list[Record]
) -> Sequence[tuple[_Form, Sequence[float]]]:
    """The forms to search, each with the rows/s of fp32 and of its first step. The static one, or a record why not."""
    began = time.perf_counter()
    made = [(form, path) for form in forms if (path := form.first()) is not None]
    fp32, *speeds = rates([_fp32_of(folder), *(candidate_of(folder, "int8", path) for _, path in made)], _spread(rows))
    found = [(form, (fp32, speed)) for (form, _), speed in zip(made, speeds, strict=True)]
    if len(found) == 1:
        return found
    dynamic, static = found
    if speeds[1] >= _STATIC_WORTH * speeds[0]:
        return [static, dynamic]
    reason = f"{speeds[1]:.0f} rows/s beside {speeds[0]:.0f} of dynamic int8: not searched further"
    seconds = time.perf_counter() - began
    records.append(Record(f"{_STATIC}: {Step()}", False, seconds, reason=reason, more=_told(static[1])))
    return [dynamic]


def _chosen(
    outcome: Climbed,
    folder: Path,
    forms: Sequence[_Form],
    form: _Form,
    figures: dict[str, Any],
    step: Step,
) -> Climbed:
    remove_graph(*(other.path for other in forms if other is not form))
    choose(folder, "int8", form.path)
    outcome.precision, outcome.graphs = "int8", figures["graphs"]
    refused = {one.step.removeprefix("int8: "): one.reason for one in outcome.records if not one.passed}
    outcome.figures = {
        **figures,
        "kept": outcome.records[-1].step,
        "kept_in_fp32": list(step.kept),
        "smoothed": dict(step.smoothed),
        "refused": refused,
    }
    return outcome


def _fp32_of(folder: Path) -> Candidate:
    """The fused fp32 graph."""
    return next(iter(of_bundle(open_bundle(folder))))


def _slow(speed: Sequence[float]) -> str:
    return f"{speed[1] / speed[0]:.2f} times fp32, which is not worth it"


def _kept(step: Step) -> dict[str, Any]:
    return {"kept_in_fp32": list(step.kept)} if step.kept else {}


def _told(speed: Sequence[float]) -> dict[str, Any]:
    return {
        "rows_per_s": round(speed[1]),
        "fp32_rows_per_s": round(speed[0]),
        "times_fp32": round(speed[1] / speed[0], 2),
    }


def _fp32(outcome: Climbed) -> Climbed:
    outcome.records.append(Record("fp32", True, 0.0, more={"because": "it is what is left"}))
    return outcome


def _spread(rows: Sequence[Row]) -> Sequence[Row]:
    """Rows of ordinary lengths, evenly out of all samples."""
    samples = list(rows)[-256:]
    return samples[:: max(1, len(samples) // 64)]
