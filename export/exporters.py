"""Which exporter traces a model, what traces it where that one cannot, and why."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.command import interrupts
from export.errors import Refused, Untraceable
from export.own_task import check_exporter
from export.source import CALLED, DYNAMO, OPTIMUM

if TYPE_CHECKING:
    from export.source import Source
    from export.tasks.base import ExportTask
    from export.tracing.torch_onnx import Traced

_ASKED = "--exporter"
_OTHER = "export another architecture (docs/models.md)"
_FIX = f"change that in the model, or {_OTHER}"


@dataclass(frozen=True)
class Exporter:
    """What traces a model."""

    name: str
    why: str = ""
    """Why this one; empty where it is the first choice for such models."""
    other: str = ""
    """What traces the model where this one cannot; empty where nothing does."""


def choose_exporter(kind: str, model: str, task: ExportTask, config: Any, asked: str) -> Exporter:
    """The exporter of architecture `kind`, which can trace it, and whose graph the worker can feed. Raises Refused.

    `asked` is one of recipe.EXPORTERS.
    """
    first, *others = task.exporters(config)
    if asked not in ("auto", first, *others):
        can = " or ".join((first, *others))
        raise Refused(f"--exporter {asked} cannot trace a {kind} for {task.tag}; leave it out, or choose {can}")
    if OPTIMUM in (first, *others):
        check_exporter(task)
        is_known = _check_inputs(kind, model, task, config)
        if not is_known and asked == OPTIMUM:
            raise Refused(
                f"{model} ({kind}) has no ONNX exporter for {task.exporter_task} in optimum; try --exporter {DYNAMO}"
            )
        if not is_known:
            return Exporter(DYNAMO, f"optimum does not know {kind} for {task.exporter_task}")
    if asked != "auto":
        return Exporter(asked, "" if asked == first else f"{_ASKED} {asked}")
    return Exporter(first, other=others[0] if others else "")


def _check_inputs(kind: str, model: str, task: ExportTask, config: Any) -> bool:
    """Refuse a model that reads what no row has; whether optimum knows it."""
    if kind in task.encoders:
        return False  # optimum knows it with its decoder
    supported = _supported(kind)
    is_known = task.exporter_task in supported
    if config.is_encoder_decoder:
        raise Refused(f"{model} ({kind}) does not fit {task.tag}: it is an encoder with a decoder; {_OTHER}")
    taken = {*task.input_axes(), "position_ids"}
    inputs = supported[task.exporter_task](config).inputs if is_known else ()
    foreign = [one for one in inputs if one not in taken]
    if foreign:
        what = f"it reads {', '.join(foreign)}, not just {task.reads}"
        raise Refused(f"{model} ({kind}) does not fit {task.tag}: {what}; {_OTHER}")
    return is_known


def _supported(kind: str) -> Any:
    from optimum.exporters.onnx import model_configs  # noqa: F401  (registers what the exporter supports)
    from optimum.exporters.tasks import TasksManager

    try:
        return TasksManager.get_supported_tasks_for_model_type(kind, "onnx", library_name="transformers")
    except KeyError:
        return {}


def trace_module(source: Source, traced: Traced, path: Path) -> Path:
    """Trace a module of the task's own with the exporter of `source`; the graph's file. Raises Untraceable."""
    if source.exporter == DYNAMO:
        from export.tracing.dynamo import trace
    else:
        from export.tracing.torch_onnx import trace
    return trace(source, traced, path)


def graphs_of(source: Source, folder: Path) -> tuple[Source, dict[str, Any]]:
    """The portable graphs of `source`, and the source with the exporter that traced them.

    Where the first exporter cannot trace the model the other one traces all of its graphs. `folder` holds their files
    meanwhile. Raises Refused, with what each of them said.
    """
    by, other = CALLED[source.exporter], source.other_exporter
    try:
        return source, _graphs(source, folder)
    except Untraceable as failure:
        if not other:
            asked = not source.exporter_why or source.exporter_why.startswith(_ASKED)
            raise Refused(f"{failure}; {f'leave {_ASKED} out' if asked else _FIX}") from failure
        first = failure.reason
    interrupts.check()  # the tracer may have taken an interrupt for a failure of the model
    shutil.rmtree(folder, ignore_errors=True)
    source = replace(source, exporter=other, other_exporter="", exporter_why=f"{by} cannot: {first}")
    try:
        return source, _graphs(source, folder)
    except Untraceable as failure:
        raise Refused(
            f"{source.model} ({source.architecture}) cannot be traced, by {by}: {first}; nor by {CALLED[other]}: "
            f"{failure.reason}; {_FIX}"
        ) from failure


def _graphs(source: Source, folder: Path) -> dict[str, Any]:
    from export.onnx_from_model import onnx_from_model

    return {name: onnx_from_model(source, folder, name) for name in source.task.graphs}
