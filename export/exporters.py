"""Which exporter traces a model: optimum where it knows the architecture, else torch.export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.errors import Refused

if TYPE_CHECKING:
    from export.tasks.base import ExportTask

OPTIMUM, DYNAMO, TORCHSCRIPT = "optimum", "dynamo", "torchscript"


def choose_exporter(kind: str, model: str, task: ExportTask, config: Any, asked: str) -> str:
    """The exporter of architecture `kind`, which can trace it, and whose graph the worker can feed. Raises Refused.

    `asked` is one of recipe.EXPORTERS. Tasks that trace a module of their own have no choice.
    """
    if not task.by_optimum:
        if asked != "auto":
            raise Refused(f"--exporter means nothing to {task.tag}, which traces its models itself; leave it out")
        return TORCHSCRIPT
    if asked == DYNAMO and not task.by_dynamo:
        raise Refused(f"--exporter dynamo is for tasks on texts, not for {task.tag}; leave it out")
    supported = _supported(kind)
    is_known = task.exporter_task in supported
    exporter = asked if asked != "auto" else OPTIMUM if is_known or not task.by_dynamo else DYNAMO
    if exporter == OPTIMUM and not is_known:
        fix = "try --exporter dynamo" if task.by_dynamo else "no bundle can be made of it"
        raise Refused(f"{model} ({kind}) has no ONNX exporter for {task.exporter_task} in optimum; {fix}")
    if config.is_encoder_decoder:
        raise Refused(f"{model} ({kind}) does not fit {task.tag}: it is an encoder with a decoder")
    taken = {*task.input_axes(), "position_ids"}
    inputs = supported[task.exporter_task](config).inputs if is_known else ()
    foreign = [one for one in inputs if one not in taken]
    if foreign:
        raise Refused(f"{model} ({kind}) does not fit {task.tag}: it reads {', '.join(foreign)}, not just {task.reads}")
    return exporter


def _supported(kind: str) -> Any:
    from optimum.exporters.onnx import model_configs  # noqa: F401  (registers what the exporter supports)
    from optimum.exporters.tasks import TasksManager

    try:
        return TasksManager.get_supported_tasks_for_model_type(kind, "onnx", library_name="transformers")
    except KeyError:
        return {}
