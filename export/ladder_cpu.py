"""The ladder of CPUs: int8 with scales that come with the activations, int8 with scales that were calibrated, fp32.

A step must be faster than fp32 here and now, side by side, or it is left.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.candidates import Candidate, candidate_of, of_bundle
from export.errors import ParityFailed
from export.int8_search import Step, search
from export.parity import Gate
from export.parity_limits import Limits
from export.precision import ROWS_TRIED, SHORTLIST, Int8
from export.precision_options import AUTO
from export.rates import rates
from export.trials import Outcome, Record, record_of
from export.write import choose

if TYPE_CHECKING:
    from engine.tensors import Row
    from export.optimize import Places
    from export.source import Source

RESERVE = 0.1
"""Of what a limit of int8 allows, this share must be left: texts that nobody tried are worse than those that were."""

_WORTH = 1.05
"""Times fp32. What is hardly faster is not worth answers that differ."""


def climb_cpu(
    gate: Gate,
    source: Source,
    folder: Path,
    files: Mapping[str, tuple[Path, Path, Places]],
    asked: str,
    limits: Limits,
    allow_failure: bool,
) -> Outcome:
    """The fastest precision of the CPU that passes. Raises ParityFailed where none does that was asked for."""
    outcome = Outcome("fp32", [])
    if len(files) > 1:
        outcome.records.append(Record("int8", False, 0.0, reason="int8 is for bundles of one graph"))
        return _fp32(outcome)
    gate.add_samples()
    portable, _, places = files["model"]
    int8 = Int8(portable, folder / "work", places, gate.rows)  # odd rows first: their activations are the largest
    held = Limits(limits.given, 0.0 if limits.given else RESERVE)
    began = 0.0

    def candidate(step: Step) -> Candidate:
        return candidate_of(folder, "int8", int8.write(step))

    def attempt(step: Step) -> dict[str, Any]:
        nonlocal began
        began = time.perf_counter()
        return gate.check(held, [candidate(step)], stop_early=True)

    def refuse(step: Step, failure: ParityFailed) -> None:
        outcome.records.append(record_of(f"int8: {step}", began, failure, **_kept(step)))

    def ranked(smoothed: Step) -> Sequence[str]:
        names = int8.suffering()
        found = {
            name: gate.mean_badness(ROWS_TRIED, candidate(Step(smoothed.smoothed, (name,))))
            for name in names[:SHORTLIST]
        }
        return sorted(found, key=lambda name: found[name]) + names[SHORTLIST:]

    path = portable.with_name("int8.cpu.onnx")
    try:
        figures, step = search(attempt, int8.gaining, ranked, refuse)
    except ParityFailed as failure:
        if asked != AUTO and not allow_failure:
            raise
        if asked != AUTO:
            return _failed(outcome, folder, int8.write(Step()), failure)
        _remove(path)
        return _fp32(outcome)
    speed = rates([*of_bundle_fp32(folder), candidate_of(folder, "int8", path)], _spread(gate.rows))
    record = record_of(f"int8: {step}", began, figures, **_kept(step), **_told(speed))
    outcome.records.append(record)
    if asked == AUTO and speed[1] < _WORTH * speed[0]:
        record.passed, record.reason = False, f"{speed[1] / speed[0]:.2f} times fp32, which is not worth it"
        _remove(path)
        return _fp32(outcome)
    choose(folder, "int8", path)
    outcome.precision, outcome.graphs = "int8", figures["graphs"]
    refused = {one.step.removeprefix("int8: "): one.reason for one in outcome.records if not one.passed}
    outcome.figures = {
        **figures,
        "kept": f"int8: {step}",
        "kept_in_fp32": list(step.kept),
        "smoothed": dict(step.smoothed),
        "refused": refused,
    }
    return outcome


def of_bundle_fp32(folder: Path) -> Sequence[Candidate]:
    """The fused fp32 graph."""
    from engine.bundle import open_bundle

    return list(of_bundle(open_bundle(folder)))[:1]


def _kept(step: Step) -> dict[str, Any]:
    return {"kept_in_fp32": list(step.kept)} if step.kept else {}


def _told(speed: Sequence[float]) -> dict[str, Any]:
    return {
        "rows_per_s": round(speed[1]),
        "fp32_rows_per_s": round(speed[0]),
        "times_fp32": round(speed[1] / speed[0], 2),
    }


def _fp32(outcome: Outcome) -> Outcome:
    outcome.records.append(Record("fp32", True, 0.0, more={"because": "it is what is left"}))
    return outcome


def _failed(outcome: Outcome, folder: Path, path: Path, failure: ParityFailed) -> Outcome:
    choose(folder, "int8", path)
    outcome.precision = "int8"
    outcome.figures, outcome.graphs = dict(failure.figures), dict(failure.figures["graphs"])
    outcome.failures.append(str(failure))
    return outcome


def _spread(rows: Sequence[Row]) -> Sequence[Row]:
    """Rows of ordinary lengths, evenly out of all samples."""
    samples = list(rows)[-256:]
    return samples[:: max(1, len(samples) // 64)]


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".bin").unlink(missing_ok=True)
