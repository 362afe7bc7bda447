"""The bundle of a task without a model: a manifest that names the task. Boot and job loop are the same for it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from engine.bundle import Manifest, write_manifest
from engine.tasks import task_class
from export.bundle_folder import new_bundle_folder
from export.command import interrupts
from export.command.progress import stage
from export.command.recipe_file import key_of
from export.errors import Refused
from export.own_task import check_online
from export.recipe import Recipe


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
            from export.write import versions

            manifest = Manifest(
                model=recipe.task,
                revision=None,
                architecture="none",
                task=recipe.task,
                task_config={},
                precision="none",
                graphs={},
                versions=versions(()),
            )
            write_manifest(folder, manifest)
        interrupts.ignore()
    return {"worst": "nothing to compare, there is no model"}
