"""One file per task, named after its Hugging Face tag; `load_task` finds it. Helpers that tasks share live elsewhere.

A tag names its file with underscores: text-classification is text_classification.py, whose `TASK` is the class.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from engine.config import Limits
from engine.errors import BundleError, MissingPackage, in_words

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from engine.tasks.base import Task


def tags_beside(file: str, *others: str) -> tuple[str, ...]:
    """The tags that have a file in the folder of `file`; `others` are the names of files that are no task's."""
    # Not pkgutil, which imports `inspect`: a worker that boots would pay for it.
    names = (name.removesuffix(".py") for name in os.listdir(os.path.dirname(file)) if name.endswith(".py"))
    return tuple(sorted(name.replace("_", "-") for name in names if name not in ("__init__", *others)))


TASKS = tags_beside(__file__, "base", "budget", "items", "media", "payload")
"""The tags that have a file here."""

DEFAULT_LIMITS = Limits()


def task_class(tag: str) -> type[Task]:
    """The class behind `tag`. Raises BundleError where this version has none or its file fails, MissingPackage."""
    if tag not in TASKS:
        raise BundleError(
            f"the bundle's task {tag!r} is not one of {', '.join(TASKS)}; update the worker, or add its "
            f"engine/tasks/{tag.replace('-', '_')}.py"
        )
    name = tag.replace("-", "_")
    try:
        module = import_module(f"engine.tasks.{name}")
    except ModuleNotFoundError as error:
        package, _, below = (error.name or "").partition(".")
        if error.name == f"engine.tasks.{name}":
            raise BundleError(
                f"the file of the task {tag} must be engine/tasks/{name}.py, with underscores for the hyphens of its "
                "tag; rename it"
            ) from error
        if package == "engine":
            raise _failed(name, error) from error
        if below and find_spec(package) is not None:
            raise MissingPackage(
                f"the task {tag} needs the Python module {error.name}, which the package {package} that is installed "
                "here lacks; install a version that has it, whole"
            ) from error
        raise MissingPackage(
            f"the task {tag} needs the Python package {error.name}, which is not installed; name it under dependencies "
            "in pyproject.toml, then `make lock UPGRADE=` and `make setup`"
        ) from error
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "engine":  # perhaps a package of another version
            raise
        raise _failed(name, error) from error
    except Exception as error:  # whatever its lines do
        raise _failed(name, error) from error
    found: type[Task] | None = getattr(module, "TASK", None)
    if not isinstance(found, type):
        raise BundleError(f"engine/tasks/{name}.py must end with `TASK = ` and the class of the task")
    return found


def _failed(name: str, error: Exception) -> BundleError:
    """For the file of a task that `error` came out of while it was imported."""
    return BundleError(f"{failed(f'engine/tasks/{name}.py', error)} (its last line is `TASK = ` and a class)")


def failed(file: str, error: Exception) -> str:
    """A sentence on `file` of a task, whose import raised `error`, with the line of it."""
    frame, line = error.__traceback__, ""
    while frame is not None:
        if frame.tb_frame.f_code.co_filename.endswith(f"{os.sep}{os.path.basename(file)}"):
            line = f" at line {frame.tb_lineno}"
        frame = frame.tb_next
    return f"{file} fails{line}: {in_words(error)}; correct it"


def load_task(bundle: Bundle, limits: Limits = DEFAULT_LIMITS) -> Task:
    """The task of `bundle`, ready to parse. Raises BundleError."""
    return task_class(bundle.manifest.task).from_bundle(bundle, limits)
