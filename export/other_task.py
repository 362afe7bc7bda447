"""Whether a model fits a task, by transformers' mappings, and whether another task takes it where it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.errors import Refused
from export.tasks import TAGS, export_task

if TYPE_CHECKING:
    from export.tasks.base import ExportTask


def auto_class(kind: str, task: ExportTask, custom: bool) -> str | None:
    """The first of the task's auto classes that knows the architecture `kind`."""
    if kind in task.encoders:
        return "AutoModelForTextEncoding"
    names = task.auto_classes()
    return next((name for name in names if _classes(name, kind)), names[0] if custom else None)


def is_for_another(config: Any, held: str, task: ExportTask) -> bool:
    """Whether a task other than `task` takes a checkpoint of class `held`; assumed of code of the model's own."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if config.model_type not in CONFIG_MAPPING_NAMES:
        return True
    others = (export_task(tag) for tag in TAGS if tag != task.tag)
    return any(_takes(other, config, held) for other in others if other.has_model)


def advice(config: Any, held: str, task: ExportTask) -> str:
    """What to do about a checkpoint of class `held` that `task` cannot use, as the end of a sentence."""
    found = "so --task may be another" if is_for_another(config, held, task) else "which no task here takes"
    return f"it holds a {held}, {found}"


def _takes(task: ExportTask, config: Any, held: str) -> bool:
    """Whether `held` is one of the task's classes, or holds the part that it makes vectors with, beside a head."""
    import transformers

    name = auto_class(config.model_type, task, custom=False)
    if name is None:
        return False
    names, is_whole = _classes(name, config.model_type), not config.sub_configs
    if len(task.graphs) == 1:
        inputs = {"pixel_values"} if task.traces_itself else {*task.input_axes()}
        if getattr(transformers, names[0]).main_input_name not in inputs:
            return False
        is_pair = config.is_encoder_decoder and config.model_type not in task.encoders
        if "input_ids" in inputs and (is_pair or not is_whole):
            return False
    try:
        task.check(held, config)
    except Refused:
        return False
    return held in names or (is_whole and name in ("AutoModel", "AutoModelForTextEncoding"))


def _classes(auto: str, kind: str) -> tuple[str, ...]:
    """The names of the classes that the auto class `auto` has for the architecture; none where it does not know it."""
    import transformers

    found = getattr(transformers, auto)._model_mapping._model_mapping.get(kind, ())
    return (found,) if isinstance(found, str) else tuple(found)
