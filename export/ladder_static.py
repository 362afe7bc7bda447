"""The ladder of int8 with scales that were calibrated, in the graph: for TensorRT, asked for by name, and for CPUs.

The steps are those of dynamic_int8.py. Each is calibrated in two ways, and the one whose answers are nearer to the
model's is kept. For TensorRT, ONNX Runtime on the CPU runs the graph that is compared, which computes the same bytes;
where no step passes, the graph is fp16.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.calibrate import METHODS
from export.candidates import Candidate, candidate_of
from export.dynamic_int8 import DynamicInt8
from export.errors import ParityFailed
from export.int8_gate import Int8Gate, figures_of
from export.int8_search import Step, search
from export.ladder_gpu import HalfGraphs, climb_gpu
from export.parity import Gate
from export.parity_limits import GateLimits
from export.static_graphs import StaticInt8
from export.static_int8 import TENSORRT
from export.trials import Climbed, Record, record_of, summed
from export.write import add_portable

if TYPE_CHECKING:
    from export.optimize import Places


def climb_static(
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
        figures, step, method = search_static(gate, folder, static, limits, "int8", outcome.records)
    except ParityFailed as failure:
        static.remove()
        if not allow_failure:
            left = climb_gpu(halves, TENSORRT, "fp16")
            return replace(left, records=[*outcome.records, *left.records])
        step, method, figures = Step(), METHODS[-1], dict(failure.figures)
        outcome.failures.append(str(failure))
    add_portable(folder, "int8", {"model": static.write(step, method)})
    outcome.graphs = figures["graphs"]
    return outcome


def search_static(
    gate: Gate,
    folder: Path,
    static: StaticInt8,
    limits: GateLimits,
    named: str,
    records: list[Record],
) -> tuple[dict[str, Any], Step, str]:
    """The fastest step that passes: its figures, the step, and how it was calibrated. Its graph is not written.

    Every step is added to `records`; their names begin with `named`. Raises ParityFailed where none passes.
    """
    bundled = static.path.relative_to(folder).as_posix()
    judge = Int8Gate(gate, limits)
    methods: dict[Step, str] = {}
    told: dict[Step, Record] = {}

    def candidate(step: Step, method: str) -> Candidate:
        return candidate_of(folder, "int8", static.trial(step, method), file=bundled)

    def attempt(step: Step) -> dict[str, Any]:
        """Both calibrations of `step`."""
        began = time.perf_counter()
        found = {method: judge.check(candidate(step, method)) for method in METHODS}
        best = min(METHODS, key=lambda method: (isinstance(found[method], ParityFailed), judge.badness(found[method])))
        methods[step] = best
        more: dict[str, Any] = {"calibration": {method: summed(figures_of(one)) for method, one in found.items()}}
        if step.kept:
            more["kept_in_fp32"] = list(step.kept)
        told[step] = record_of(f"{named}, {best}: {step}", began, found[best], **more)
        records.append(told[step])
        if isinstance(failure := found[best], ParityFailed):
            raise failure
        return failure

    def gaining() -> Sequence[tuple[str, float]]:
        method = methods[Step()]
        return judge.inputs(static.gaining(), lambda one: candidate(Step((one,)), method))

    def ranked(smoothed: Step) -> Sequence[str]:
        method = methods[smoothed]
        return judge.matrices(
            static.suffering(smoothed, method), lambda name: candidate(replace(smoothed, kept=(name,)), method)
        )

    figures, step = search(attempt, gaining, ranked)
    records.append(records.pop(records.index(told[step])))
    return figures, step, methods[step]
