"""Which task a model is for, when nobody says. Rule: reads JSON files only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import Refused
from export.model_files.json_files import read_json
from export.tasks import TAGS, export_task

if TYPE_CHECKING:
    from export.tasks.base import ExportTask

_CONTINUE = ("ForCausalLM", "LMHeadModel", "DoubleHeadsModel")
_PAIR = "EncoderDecoderModel"
"""Of images or texts that become texts: not a model without a head, as other classes that end so are."""
_GENERATE = (*_CONTINUE, "ForConditionalGeneration", _PAIR)
_ENCODED = ("t5", "mt5", "umt5")
"""Whose encoder is taken alone."""
_FILL = "WithLMHeadModel"
"""XLM's and FlauBERT's class, which fills gaps."""


def claimed(root: Path) -> str | None:
    """The tag that the tasks' own files below `root` speak for."""
    config = read_json(root / "config.json")
    return next((task.tag for task in _that_say("claims") if task.claims(root, config)), None)


def _that_say(name: str) -> list[ExportTask]:
    """The tasks whose own class has `name`: one that is built on another does not take that one's models over."""
    return [task for task in map(export_task, TAGS) if name in vars(type(task))]


def infer_task(root: Path, model: str) -> str:
    """The tag that the files below `root` speak for: the task's own files first, then the model class in config.json.

    Raises Refused, with the tags to choose from, when nothing or more than one thing fits.
    """
    config = read_json(root / "config.json")
    classes = config.get("architectures") or []
    if not any(name.endswith(_PAIR) for name in classes) and (found := claimed(root)):
        return found
    makers = [name for name in classes if name.endswith(_GENERATE) and not name.endswith(_FILL)]
    others = [name for name in classes if name not in makers]
    fitting = [task.tag for task in _that_say("heads") if any(name.endswith(task.heads) for name in others)]
    if len(fitting) == 1:
        return fitting[0]
    if makers and not fitting:
        fix = (
            "--task feature-extraction makes embeddings of it"
            if makers[0].endswith(_CONTINUE) or config.get("model_type") in _ENCODED
            else "choose another model"
        )
        raise Refused(f"{model} is a {makers[0]}, which generates text, and no task here does that; {fix}")
    found = f"its class {', '.join(classes)} fits {', '.join(fitting) or 'none'}" if classes else "it names no class"
    raise Refused(f"{model} does not say what it is for ({found}); name it with --task, one of {', '.join(TAGS)}")
