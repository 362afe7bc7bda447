"""The ladder of CPUs: int8 with scales that come with the activations, or with scales that were calibrated; else fp32.

Both forms of int8 are timed beside fp32 before either is searched: what is smoothed or kept in fp32 makes them slower,
never faster. The form that is faster is searched first, the other where nothing of it passes. A form that is asked for
by name is the only one.

Measured on two cores with AVX-512 VNNI, in multiples of fp32 (`python -m benchmarks int8`): a ResNet-50 2.8 with
calibrated scales and 1.0 without, for only they reach a Conv, a ConvNeXt-tiny 2.8 and 1.4; a ViT-small 2.1 and 2.0, for
products with a matrix have kernels that find the scale as they go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.bundle import open_bundle
from export.errors import ParityFailed, Refused
from export.gate.limits import GateLimits
from export.int8.dynamic import DynamicInt8
from export.int8.ladder import Form, failed_form, search_form
from export.int8.search import Step
from export.int8.static import CPU
from export.int8.static_graphs import FILES, StaticInt8
from export.optimize import remove_graph
from export.parity import Gate
from export.precision.candidates import Candidate, candidate_of, of_bundle
from export.precision.options import AUTO, DYNAMIC, STATIC
from export.precision.rates import rates
from export.precision.trials import Climbed, Record
from export.write import choose

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from engine.tensors import Row
    from export.optimize import Places

_WORTH = 1.05
"""Times fp32: a graph that is hardly faster is not worth answers that differ."""

_STATIC_WORTH = 1.2
"""Times dynamic int8. Calibrated scales are right for rows like those that were calibrated on, and trying them takes
longer. And where the two are about as fast the noise of a timing would choose, though equal recipes are to give equal
graphs."""

_DYNAMIC, _STATIC = "int8", "int8, static"
"""What the forms are called in parity.json."""
_NAMED = {DYNAMIC: _DYNAMIC, STATIC: _STATIC}


def precision_of(bundle: Bundle) -> str:
    """What the CPU runs `bundle` in, as --precision takes it: int8 by its form, which was chosen by speed."""
    manifest = bundle.manifest
    if manifest.precision != "int8":
        return manifest.precision
    return STATIC if manifest.graphs["model"].fused["int8"].endswith(FILES[CPU]) else DYNAMIC


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
        return outcome.stay_fp32()
    gate.add_samples()
    portable, _, places = files["model"]
    # Odd rows first: their activations are the largest.
    int8 = DynamicInt8(portable, folder / "work", places, gate.rows)
    forms: dict[str, Form] = {_DYNAMIC: int8, _STATIC: StaticInt8(int8, CPU)}
    if asked in _NAMED:
        forms = {_NAMED[asked]: forms[_NAMED[asked]]}
    last: ParityFailed | None = None
    for name, speed in _in_order(forms, folder, gate.rows, asked, outcome.records):
        form = forms[name]
        if asked == AUTO and not _is_worth(speed):
            outcome.records.append(Record(f"{name}: {Step()}", False, 0.0, reason=_slow(speed), more=_told(speed)))
            continue
        try:
            figures, step, method = search_form(gate, folder, form, limits, name, outcome.records)
        except ParityFailed as failure:
            last = failure
            continue
        form.write(step, method)
        record = outcome.records[-1]
        if step != Step():
            speed = rates(
                [_fp32_of(folder), candidate_of(folder, "int8", form.path)],
                _spread(gate.rows),
                _is_worth if asked == AUTO else None,
            )
        record.more = {**record.more, **_told(speed)}
        if asked == AUTO and not _is_worth(speed):
            record.passed, record.reason = False, _slow(speed)
            continue
        remove_graph(*(other.path for other in forms.values() if other is not form))
        choose(folder, "int8", form.path)
        return Climbed("int8", outcome.records, figures["graphs"], figures)
    remove_graph(*(form.path for form in forms.values()))
    if asked == AUTO or last is None:
        return outcome.stay_fp32()
    if not allow_failure:
        raise last
    form = next(iter(forms.values()))
    failed, method = failed_form(gate, folder, form, limits, last)
    choose(folder, "int8", form.write(Step(), method))
    outcome.precision = "int8"
    outcome.figures, outcome.graphs = dict(failed.figures), dict(failed.figures["graphs"])
    outcome.failures.append(str(failed))
    return outcome


def _in_order(
    forms: Mapping[str, Form], folder: Path, rows: Sequence[Row], asked: str, records: list[Record]
) -> Sequence[tuple[str, Sequence[float]]]:
    """The forms to search, each with the rows/s of fp32 and of its first step.

    That with calibrated scales comes first where it is much faster; else it is left out, and a record says why.
    """
    began = time.perf_counter()
    made = {name: path for name, form in forms.items() if (path := form.untuned()) is not None}
    if not made:
        raise Refused(f"the model has no weights that {STATIC} makes bytes of; take --precision int8")
    candidates = (candidate_of(folder, "int8", path) for path in made.values())
    fp32, *speeds = rates([_fp32_of(folder), *candidates], _spread(rows), _verdict(asked))
    found = [(name, (fp32, speed)) for name, speed in zip(made, speeds, strict=True)]
    if len(found) == 1:
        return found
    dynamic, static = found
    if _is_much_faster(*speeds):
        return [static, dynamic]
    reason = f"{speeds[1]:.0f} rows/s beside {speeds[0]:.0f} of dynamic int8: not searched further"
    seconds = time.perf_counter() - began
    records.append(Record(f"{_STATIC}: {Step()}", False, seconds, reason=reason, more=_told(static[1])))
    return [dynamic]


def _verdict(asked: str) -> Callable[[Sequence[float]], tuple[bool, bool]]:
    """Of the rows/s of fp32, dynamic int8 and static int8: whether the last comes first, and what does is worth it."""

    def conclude(speeds: Sequence[float]) -> tuple[bool, bool]:
        fp32, *forms = speeds
        is_static = len(forms) > 1 and _is_much_faster(*forms)
        return is_static, asked != AUTO or _is_worth((fp32, forms[is_static]))

    return conclude


def _is_much_faster(dynamic: float, static: float) -> bool:
    return static >= _STATIC_WORTH * dynamic


def _is_worth(speed: Sequence[float]) -> bool:
    """Of the rows/s of fp32 and of int8."""
    fp32, int8 = speed
    return int8 >= _WORTH * fp32


def _fp32_of(folder: Path) -> Candidate:
    """The fused fp32 graph."""
    return next(iter(of_bundle(open_bundle(folder))))


def _slow(speed: Sequence[float]) -> str:
    return f"{speed[1] / speed[0]:.2f} times fp32, which is not worth it"


def _told(speed: Sequence[float]) -> dict[str, Any]:
    return {
        "rows_per_s": round(speed[1]),
        "fp32_rows_per_s": round(speed[0]),
        "times_fp32": round(speed[1] / speed[0], 2),
    }


def _spread(rows: Sequence[Row]) -> Sequence[Row]:
    """Rows of ordinary lengths, evenly out of all samples."""
    samples = list(rows)[-256:]
    return samples[:: max(1, len(samples) // 64)]
