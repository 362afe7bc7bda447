"""The ladder of int8 for TensorRT: products of bytes with scales in the graph, asked for by name.

The steps are those of the CPU (precision.py), each calibrated in two ways, of which the one that is nearer to the model
is kept. What is compared is the graph in ONNX Runtime on the CPU, which computes the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.bundle import open_bundle, write_manifest
from export.candidates import Candidate, candidate_of
from export.errors import ParityFailed, Refused
from export.int8_search import Step, search
from export.parity import Gate
from export.parity_limits import Limits
from export.precision import ROWS_TRIED, SHORTLIST, Int8
from export.static_int8 import METHODS
from export.trials import Outcome, record_of, summed

if TYPE_CHECKING:
    from export.optimize import Places

RESERVE = 0.1
"""Of what a limit of int8 allows, this share must be left: texts that nobody tried are worse than those that were."""


def climb_static(
    gate: Gate,
    folder: Path,
    files: Mapping[str, tuple[Path, Path, Places]],
    limits: Limits,
    allow_failure: bool,
) -> Outcome:
    """The int8 graph for TensorRT. Raises ParityFailed where none passes, Refused for bundles of several graphs."""
    if len(files) > 1:
        raise Refused("--precision tensorrt=int8 is for models of one graph; use fp16")
    gate.add_samples()
    portable, _, places = files["model"]
    int8 = Int8(portable, folder / "work", places, gate.rows)
    held = Limits(limits.given, 0.0 if limits.given else RESERVE)
    outcome = Outcome("int8", [])

    def candidate(step: Step, method: str) -> Candidate:
        return candidate_of(folder, "int8", int8.write_qdq(step, method))

    def attempt(step: Step) -> dict[str, Any]:
        """Both calibrations of `step`; the better one is left in its place."""
        began = time.perf_counter()
        found = {method: _checked(gate, held, candidate(step, method)) for method in METHODS}
        best = min(METHODS, key=lambda method: (isinstance(found[method], ParityFailed), _badness(gate, found[method])))
        more: dict[str, Any] = {"calibration": {method: summed(_figures(one)) for method, one in found.items()}}
        if step.kept:
            more["kept_in_fp32"] = list(step.kept)
        outcome.records.append(record_of(f"int8, {best}: {step}", began, found[best], **more))
        if isinstance(failure := found[best], ParityFailed):
            raise failure
        if best != METHODS[-1]:
            int8.write_qdq(step, best)
        return failure

    def ranked(smoothed: Step) -> Sequence[str]:
        names = int8.suffering()
        found = {
            name: gate.mean_badness(ROWS_TRIED, candidate(Step(smoothed.smoothed, (name,)), METHODS[-1]))
            for name in names[:SHORTLIST]
        }
        return sorted(found, key=lambda name: found[name]) + names[SHORTLIST:]

    try:
        figures, _ = search(attempt, int8.gaining, ranked)
    except ParityFailed as failure:
        if not allow_failure:
            raise
        int8.write_qdq(Step(), METHODS[-1])
        figures = dict(failure.figures)
        outcome.failures.append(str(failure))
    outcome.graphs = figures["graphs"]
    manifest = open_bundle(folder).manifest
    graph = manifest.graphs["model"]
    onnx = portable.with_name("int8.onnx").relative_to(folder).as_posix()
    graph = replace(graph, onnx={**graph.onnx, "int8": onnx})
    write_manifest(folder, replace(manifest, graphs={"model": graph}))
    return outcome


def _checked(gate: Gate, limits: Limits, candidate: Candidate) -> dict[str, Any] | ParityFailed:
    try:
        return gate.check(limits, [candidate], stop_early=True)
    except ParityFailed as failure:
        return failure


def _figures(checked: Mapping[str, Any] | ParityFailed) -> Mapping[str, Any]:
    return checked.figures if isinstance(checked, ParityFailed) else checked


def _badness(gate: Gate, checked: Mapping[str, Any] | ParityFailed) -> float:
    """By the task's first measure, of the worst row."""
    first = gate.measures[0]
    (graph,) = _figures(checked)["graphs"].values()
    return first.badness(graph[first.key])
