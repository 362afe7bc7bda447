"""The bundle of a task without a model: its own files, and a manifest that names it. Boot and job loop are the same."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.bundle import Manifest, write_manifest
from engine.tasks import task_class
from export.bundle_folder import new_bundle_folder
from export.command import interrupts
from export.command.progress import stage
from export.command.recipe_file import key_of
from export.errors import Refused
from export.own_task import check_online
from export.recipe import Recipe
from export.source import Source
from export.tasks import export_task

if TYPE_CHECKING:
    from export.tasks.base import ExportTask


def without_model(recipe: Recipe) -> dict[str, Any]:
    """Write the bundle of `recipe`, and return what there is to say in place of parity figures. Raises Refused."""
    assert recipe.task is not None
    check_online(recipe.task)
    if task_class(recipe.task).auto_class:
        name = recipe.task.replace("-", "_")
        raise Refused(f"{recipe.task} needs a model, and export/tasks/{name}.py is missing; see docs/adding-a-task.md")
    if recipe.model:
        raise Refused(f"{recipe.task} has no model; leave {recipe.model} out")
    if recipe.plan is not None:
        raise Refused(f"{recipe.task} has no model, so that there is nothing to build a plan from; leave --plan out")
    plain = Recipe("", recipe.task, recipe.out)
    if odd := [one.name for one in fields(Recipe) if getattr(recipe, one.name) != getattr(plain, one.name)]:
        raise Refused(f"--{key_of(odd[0])} means nothing to {recipe.task}, which has no model; leave it out")
    with new_bundle_folder(recipe.out) as folder:
        with stage("write"):
            from export.write import versions, write_files

            task = export_task(recipe.task)
            source = _no_model(task)
            write_files(folder, task.files(source))
            manifest = Manifest(
                model=recipe.task,
                revision=None,
                architecture="none",
                task=recipe.task,
                task_config=task.task_config(source, {}),
                precision="none",
                graphs={},
                versions=versions(()),
            )
            write_manifest(folder, manifest)
        interrupts.ignore()
    return {"worst": "nothing to compare, there is no model"}


def _no_model(task: ExportTask) -> Source:
    """What the methods of a task with a model are given, without one."""
    return Source(
        folder=Path(),
        model=task.tag,
        revision=None,
        task=task,
        auto_class="",
        architecture="none",
        config=None,
        max_length=1,
        weights_bytes=0,
        trust_remote_code=False,
    )
