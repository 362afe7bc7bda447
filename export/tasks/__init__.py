"""The offline side of every task, one file a tag, named like the online side in engine/tasks; `export_task` finds it.

Nothing here is imported to list the tags: help and wrong arguments need no torch and no onnx.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from engine.tasks import TASKS, failed, tags_beside
from export.errors import Refused
from export.own_task import check_class

if TYPE_CHECKING:
    from export.tasks.base import ExportTask

TAGS = tuple(sorted({*TASKS, *tags_beside(__file__, "base")}))
"""The tags that a bundle can be made for. Those without a file here have no model, of which there is nothing to say."""


def export_task(tag: str) -> ExportTask:
    """The offline side of one of TAGS. Raises Refused for a file that fails, ends otherwise or misspells a name."""
    name = tag.replace("-", "_")
    if find_spec(f"export.tasks.{name}") is None:
        from export.tasks.base import ExportTask

        return type("WithoutModel", (ExportTask,), {"tag": tag, "has_model": False})()
    try:
        module = import_module(f"export.tasks.{name}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("engine", "export"):  # a package that is not installed
            raise
        raise Refused(failed(f"export/tasks/{name}.py", error)) from error
    except Exception as error:  # whatever its lines do
        raise Refused(failed(f"export/tasks/{name}.py", error)) from error
    found: ExportTask | None = getattr(module, "TASK", None)
    if found is None or isinstance(found, type):
        raise Refused(f"export/tasks/{name}.py must end with `TASK = ` and an instance of the task's class")
    if (its_tag := getattr(found, "tag", None)) != tag:
        raise Refused(f"export/tasks/{name}.py has the tag {its_tag!r}; it must be {tag!r}, as the file's name")
    check_class(found)
    return found
