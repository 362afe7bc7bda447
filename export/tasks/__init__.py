"""The offline side of every task, one file a tag, named like the online side in engine/tasks; `export_task` finds it.

Nothing here is imported to list the tags: help and wrong arguments need no torch and no onnx.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.tasks.base import ExportTask

_NOT_TASKS = {"__init__", "base"}

TAGS = tuple(
    sorted(
        name.removesuffix(".py").replace("_", "-")
        for name in os.listdir(os.path.dirname(__file__))
        if name.endswith(".py") and name.removesuffix(".py") not in _NOT_TASKS
    )
)
"""The tags that a model can be exported for."""


def export_task(tag: str) -> ExportTask:
    """The offline side of one of TAGS."""
    found: ExportTask = import_module(f"export.tasks.{tag.replace('-', '_')}").TASK
    return found
