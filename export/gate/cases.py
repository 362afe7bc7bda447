"""What the gate compares on: rows as the worker makes them, each with the reference's answer."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.batching.feed import run_rows
from engine.bundle import Bundle
from engine.errors import InvalidInput
from engine.tasks import load_task
from engine.tensors import Arrays, Row, TensorSpec
from export.command.said import first_line, quiet
from export.errors import Refused, refusal_of
from export.gate.reply import place_of
from export.own_task import file_of
from export.source import Source

if TYPE_CHECKING:
    from engine.tasks.base import Json, Task
    from export.tasks.base import ExportTask, Probe


_MODULES_CALL = "_call_impl"
"""Of torch.nn.Module: by way of it every model is run."""


@dataclass(frozen=True)
class Case:
    """A row, and what should be answered to it."""

    label: str
    row: Row
    expected: Arrays
    by_graph: bool = False
    """Whether the bundle's own fp32 graph answered, instead of the model in PyTorch."""


def cases_of(source: Source, bundle: Bundle, payloads: Sequence[tuple[str, Json]]) -> list[Case]:
    """Rows as the worker makes them, each with the reference's answer."""
    import torch

    task = load_task(bundle)
    model = source.load_model(as_reference=True)
    cases = []
    with quiet(), torch.inference_mode():
        for probe in source.task.probes(source):
            rows = _rows(task, probe, source.task)
            for row, inputs in zip(rows, probe.inputs, strict=True):
                expected = _reference(source, model, inputs, f"the probe {probe.label!r}")
                if expected is not None:
                    cases.append(Case(probe.label, row, expected))
        for label, payload in payloads:
            rows = task.preprocess(task.parse(payload))
            for row, inputs in zip(rows, source.task.inputs_of(source, payload, rows) or (), strict=False):
                expected = _reference(source, model, inputs, label)
                if expected is not None:
                    cases.append(Case(label, row, expected))
    _check_graphs(source.task, bundle, {case.row.graph for case in cases})
    return cases


def _check_graphs(task: ExportTask, bundle: Bundle, named: set[str]) -> None:
    """Raise Refused where not every graph of `bundle` has rows, or others have: nothing would be compared there."""
    graphs = set(bundle.manifest.graphs)
    if named != graphs:
        raise Refused(
            f"{file_of(task)}.probes give rows for the graphs {', '.join(sorted(named)) or 'none'}, and `graphs` are "
            f"{', '.join(sorted(graphs))}; each of these needs a row at least, and no other may have one "
            "(docs/adding-a-task.md)"
        )


def _reference(source: Source, model: Any, inputs: Mapping[str, Any], what: str) -> Arrays | None:
    """What PyTorch answers.

    Raises Refused where the model cannot take what its own tokenizer or processor makes, or answers NaN; or where the
    task fails on what the model gives, with the method and the line.
    """
    try:
        found = source.task.reference(source, model, inputs)
    except Exception as error:
        if refusal := refusal_of(error):
            raise refusal from error
        if place := _own_place(source.task, error):
            raise Refused(
                f"{file_of(source.task)}.{place} on {what}: {type(error).__name__}: {first_line(error)}; correct it, "
                f"or what makes the inputs ({', '.join(inputs)})"
            ) from error
        if not isinstance(error, IndexError | RuntimeError | ValueError):
            raise
        raise Refused(
            f"{source.model} fails in PyTorch on {what}: {first_line(error)}; its own files make the inputs "
            f"({', '.join(inputs)}), so correct what they say of these, or export another model"
        ) from error
    if isinstance(found, Mapping):
        _check_numbers(source, found, what)
    return found


def _check_numbers(source: Source, found: Arrays, what: str) -> None:
    """Raise Refused where they are none, which no graph is to blame for; -infinity is what masks are made of."""
    answers = [one for one in found.values() if isinstance(one, np.ndarray) and one.dtype.kind == "f"]
    if not all((one < np.inf).all() for one in answers):
        raise Refused(
            f"{source.model} answers NaN or infinity in PyTorch on {what}: its weights are broken; download it again, "
            "or export another model"
        )


def _own_place(task: ExportTask, error: Exception) -> str:
    """Where in the task's file `error` came out of; empty for one that the model raised."""
    frames = traceback.extract_tb(error.__traceback__)
    file = sys.modules[type(task).__module__].__file__
    last = max((place for place, frame in enumerate(frames) if frame.filename == file), default=None)
    if last is None or any(frame.name == _MODULES_CALL for frame in frames[last:]):
        return ""
    method, line = place_of(task, error)
    return f"{method} fails{line}"


def _rows(task: Task, probe: Probe, offline: ExportTask) -> Sequence[Row]:
    """Raises Refused where the task's two files do not fit together."""
    ours, theirs = type(task).__name__, type(offline).__name__
    try:
        rows = task.preprocess(task.parse(probe.payload))
    except InvalidInput as error:
        method = "probe" if hasattr(offline, "probe") else "probes"
        raise Refused(
            f"{ours} refuses the probe {probe.label!r} that {theirs} makes: {error}; let {theirs}.{method} make "
            "payloads that `parse` takes (docs/adding-a-task.md)"
        ) from error
    if len(rows) != len(probe.inputs):
        raise Refused(
            f"{ours} makes {len(rows)} rows of the probe {probe.label!r}, for which {theirs} has {len(probe.inputs)} "
            "inputs; each row needs its own (docs/adding-a-task.md)"
        )
    return rows


def sample_cases(exact: Bundle, name: str, payloads: Iterable[tuple[str, Json]]) -> list[Case]:
    """Rows of `payloads` for graph `name`, with the answers of the bundle as `exact` runs it.

    A row without a token, which the model in PyTorch does not take either, is left out: there is nothing in its tensors
    that a range or a largest value could be of.
    """
    task, cases = load_task(exact), []
    with closing(OnnxRuntimeEngine(exact, name)) as engine:
        for label, payload in payloads:
            for row in task.preprocess(task.parse(payload)):
                if row.graph != name or not all(values.size for values in row.feeds.values()):
                    continue
                (output,) = run_rows(engine, [row])
                found = {spec.name: without_padding(output[spec.name], spec, row) for spec in engine.outputs}
                cases.append(Case(label, row, found, by_graph=True))
    return cases


def without_padding(values: Any, spec: TensorSpec, row: Row) -> Any:
    """`values` of an output, without what stands behind the end of `row`."""
    axis = spec.length_axis
    return values if axis is None else values[(*(slice(None),) * (axis - 1), slice(row.length))]
