"""The ladder of int8, step by step, in any of its forms; and that of TensorRT, which gets int8 only when asked by name.

The steps are those of dynamic.py. Where scales are calibrated, each step is calibrated in two ways, and the one whose
answers are nearer to the model's is kept. For TensorRT, ONNX Runtime on the CPU runs the graph that is compared, which
computes the same bytes; where no step passes, the graph is fp16.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from export.errors import ParityFailed
from export.gate.limits import GateLimits
from export.int8.dynamic import DynamicInt8
from export.int8.gate import Int8Gate, figures_of
from export.int8.search import Step, search
from export.int8.static import TENSORRT
from export.int8.static_graphs import StaticInt8
from export.parity import Gate
from export.precision.candidates import Candidate, candidate_of
from export.precision.ladder_gpu import HalfGraphs, climb_gpu
from export.precision.trials import Climbed, Record, record_of, summed
from export.write import add_portable

if TYPE_CHECKING:
    from export.optimize import Places


def climb_int8(
    halves: HalfGraphs,
    folder: Path,
    files: Mapping[str, tuple[Path, Path, Places]],
    limits: GateLimits,
    allow_failure: bool,
) -> Climbed:
    """The int8 graph for TensorRT of a model of one graph, or else the fp16 graph.

    Raises ParityFailed where neither passes.
    """
    gate = halves.gate
    gate.add_samples()
    portable, _, places = files["model"]
    static = StaticInt8(DynamicInt8(portable, folder / "work", places, gate.rows), TENSORRT)
    outcome = Climbed("int8", [])
    try:
        figures, step, method = search_form(gate, folder, static, limits, "int8", outcome.records)
    except ParityFailed as failure:
        static.remove()
        if not allow_failure:
            left = climb_gpu(halves, TENSORRT, "fp16")
            return replace(left, records=[*outcome.records, *left.records])
        failed, method = failed_form(gate, folder, static, limits, failure)
        step, figures = Step(), dict(failed.figures)
        outcome.failures.append(str(failed))
    add_portable(folder, "int8", {"model": static.write(step, method)})
    outcome.graphs = figures["graphs"]
    return outcome


class Form(Protocol):
    """Makes the int8 graph of any step, at one path: with scales that come with the activations, or calibrated ones."""

    path: Path

    @property
    def methods(self) -> Sequence[str]:
        """Ways to calibrate; where nothing is calibrated the only one is the empty text."""

    def untuned(self) -> Path | None:
        """Write a graph as fast as that of the first step; None where it would have no bytes."""

    def trial(self, step: Step, method: str) -> Path:
        """Write what the gate compares; it replaces the one before."""

    def write(self, step: Step, method: str) -> Path:
        """Write the graph of `step`, calibrated by `method`, to `path`."""

    def gaining(self) -> list[tuple[str, float]]:
        """Inputs of products that smoothing helps, those first whose products gain most, with the best alpha each."""

    def suffering(self, step: Step, method: str) -> list[str]:
        """Names of the nodes with weights, the one first whose product loses most by int8."""


def search_form(
    gate: Gate, folder: Path, form: Form, limits: GateLimits, named: str, records: list[Record]
) -> tuple[dict[str, Any], Step, str]:
    """The fastest step of `form` that passes: its figures, the step, and how it was calibrated.

    Every step is added to `records`, the one that is returned last; their names begin with `named`. `form.write` is
    left to the caller. Raises ParityFailed where no step passes.
    """
    judge = Int8Gate(gate, limits)
    methods: dict[Step, str] = {}
    told: dict[Step, Record] = {}
    candidate = partial(_candidate, folder, form)

    def attempt(step: Step) -> dict[str, Any]:
        """All calibrations of `step`; what counts is the best."""
        began = time.perf_counter()
        best, found = judge.nearest({method: partial(candidate, step, method) for method in form.methods})
        methods[step] = best
        more: dict[str, Any] = {}
        if len(found) > 1:
            more["calibration"] = {method: summed(figures_of(one)) for method, one in found.items()}
        if step.kept:
            more["kept_in_fp32"] = list(step.kept)
        name = f"{named}, {best}" if best else named
        told[step] = record_of(f"{name}: {step}", began, found[best], **more)
        records.append(told[step])
        if isinstance(checked := found[best], ParityFailed):
            raise checked
        return checked

    def gaining() -> Sequence[tuple[str, float]]:
        method = methods[Step()]
        return judge.inputs(form.gaining(), lambda one: candidate(Step((one,)), method))

    def ranked(smoothed: Step) -> Sequence[str]:
        method = methods[smoothed]
        return judge.matrices(
            form.suffering(smoothed, method), lambda name: candidate(replace(smoothed, kept=(name,)), method)
        )

    figures, step = search(attempt, gaining, ranked)
    records.append(records.pop(records.index(told[step])))
    return figures, step, methods[step]


def failed_form(
    gate: Gate, folder: Path, form: Form, limits: GateLimits, failure: ParityFailed
) -> tuple[ParityFailed, str]:
    """The first step of `form`, with what all of its answers come to, and how it is calibrated.

    For a bundle that is written though no step passes: a search stops early at each. `failure` is that of its last.
    """
    made = {method: partial(_candidate, folder, form, Step(), method) for method in form.methods}
    method, found = Int8Gate(gate, limits).nearest(made, stop_early=False)
    checked = found[method]
    if isinstance(checked, ParityFailed):
        return checked, method
    failure.figures = checked
    return failure, method


def _candidate(folder: Path, form: Form, step: Step, method: str) -> Candidate:
    bundled = form.path.relative_to(folder).as_posix()
    return candidate_of(folder, "int8", form.trial(step, method), file=bundled)
