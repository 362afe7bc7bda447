"""One file per task, named after its Hugging Face tag; `load_task` finds it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from engine.config import Limits
from engine.errors import BundleError

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from engine.tasks.base import Task

TASKS = ("feature-extraction",)
"""The tags that have a module here, in the order that help texts list them."""

DEFAULT_LIMITS = Limits()


def load_task(bundle: Bundle, limits: Limits = DEFAULT_LIMITS) -> Task:
    """The task of `bundle`, ready to parse. Raises BundleError for a tag that this version does not have."""
    tag = bundle.manifest.task
    if tag not in TASKS:
        raise BundleError(f"the bundle's task {tag!r} is not one of {', '.join(TASKS)}; update the worker")
    module = import_module(f"engine.tasks.{tag.replace('-', '_')}")
    task: Task = module.TASK.from_bundle(bundle, limits)
    return task
