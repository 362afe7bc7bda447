"""`python -m export`: the stages in order, each a line on the screen. Exit codes are in the help text.

Other commands (`_COMMANDS`) are modules of their own.
"""

from __future__ import annotations

from export.command import interrupts

if __name__ == "__main__":
    interrupts.hold()  # the imports take a while
    from export.command.terminal import open_closed

    open_closed()

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from shlex import quote
from typing import Any

from engine.bundle import SIGNATURE, Bundle, open_bundle, write_manifest
from engine.sizes import readable
from engine.table import table
from export.bundle_folder import new_bundle_folder
from export.command.exit_codes import DEFECT, INTERRUPTED, OK, REFUSED
from export.command.list_tasks import LIST_TASKS, tasks
from export.command.outcome import NOTHING_WRITTEN, Outcome, outcome_of, plans_added
from export.command.progress import recorded, size_of, stage
from export.command.terminal import only_json, settle, without_effect
from export.errors import Refused, blaming_the_disk
from export.packages import INSTALL, other_versions
from export.recipe import Command, Recipe, command_from_argv
from export.tasks import export_task
from export.without_model import without_model

_COMMANDS = {
    "keygen": ("export.signing", "keygen"),
    "sign": ("export.signing", "sign"),
    "verify": ("export.signing", "verify"),
    "plan --on-runpod": ("export.pods.on_runpod", "main"),
}
"""First argument -> module and function; the function takes the other arguments and returns the Outcome."""
_ON_RUNPOD = "--on-runpod"
_NO_DEFECTS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""A panic of a library in Rust, as tokenizers is, is no Exception either, and is a defect all the same."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code. Whatever else than 0 it is, no bundle is there or changed.

    But for plans of GPUs that were done before (--on-runpod), which the sentence names. What comes behind that has
    no say in it, a signal as little as output that cannot be written.
    With --json a defect of ours is an answer like the others; without, it comes out as the exception that it is.
    """
    argv = sys.argv[1:] if argv is None else argv
    with recorded() as done:
        if "--json" not in argv:
            outcome = _outcome(argv)
            with without_effect():
                outcome.tell()
            return outcome.code
        with only_json() as say:
            try:
                outcome = _outcome(argv)
            except _NO_DEFECTS:
                raise
            except BrokenPipeError:  # of stderr, which all goes to that is not the object
                outcome = Outcome(INTERRUPTED, NOTHING_WRITTEN)
            except BaseException as defect:
                with without_effect():
                    traceback.print_exc()
                outcome = Outcome(DEFECT, f"{type(defect).__name__}: {defect}")
            with without_effect():
                outcome.tell(sys.stderr)
            with without_effect():
                say(outcome.as_json(done))
    return outcome.code


def _outcome(argv: Sequence[str]) -> Outcome:
    try:
        os.getcwd()
    except OSError:
        return Outcome(REFUSED, "the folder that this runs in was removed; change to one that is there")
    try:
        interrupts.check()  # for what came while this was imported
        if argv and (command := _command(argv)):
            return command(argv[1:])
        if argv[:1] == ["plan"]:
            return _plan(argv[1:])
        if "--json" in argv and LIST_TASKS in argv:
            return Outcome(OK, more={"status": "listed", "tasks": tasks()})
        return _export(command_from_argv(argv))
    except BaseException as error:
        if (outcome := outcome_of(error)) is None:
            raise
        return outcome


def _export(command: Command) -> Outcome:
    recipe = command.recipe
    if command.write_recipe is not None:
        from export.command.recipe_file import command_of, write_recipe

        write_recipe(command.write_recipe, recipe)
        return Outcome(OK, next=command_of(command.write_recipe, recipe))
    try:
        figures = export(recipe)
    except SystemExit as end:  # nothing of ours
        raise Refused(f"the code of {recipe.model} ends the program ({end}); read it, and take that out") from end
    from export.command.closing_table import result_of

    return Outcome(OK, result=result_of(recipe, figures))


def _command(argv: Sequence[str]) -> Callable[[Sequence[str]], Outcome] | None:
    name = argv[0]
    if any(argument.partition("=")[0] == _ON_RUNPOD for argument in argv):
        name = f"{name} {_ON_RUNPOD}"
    if name not in _COMMANDS:
        names = [one for one in ("plan", *_COMMANDS) if " " not in one]
        near = get_close_matches(name, names, 1, 0.75)
        if near and name not in names and not os.path.exists(name):
            raise Refused(f"there is no command {name!r}; did you mean {near[0]}? see python -m export --help")
        return None
    module, function = _COMMANDS[name]
    command: Callable[[Sequence[str]], Outcome] = getattr(import_module(module), function)
    return command


def _plan(argv: Sequence[str]) -> Outcome:
    from export.plans.recipe import plan_command

    path, recipe = plan_command(argv)
    from export.plan_from_onnx import add_plans

    was_signed = (path / SIGNATURE).exists()
    names = add_plans(path, recipe)
    bundle = open_bundle(path)
    sizes = [(name, readable(bundle.manifest.files[name][0])) for name in names]
    with without_effect():
        print(f"\n{table([('plan', 'size'), *sizes])}")
        print(f"\nbundle    {path}  {readable(size_of(path))}")
        if was_signed:
            print("signature removed, for it was of the bundle as it was; sign it again")
    where = quote(str(path))
    following = f"python -m engine inspect {where}"
    if was_signed:
        following = f"python -m export sign {where} --key FILE"
    try:
        os.getcwd()
    except OSError:  # this runs in the bundle as it was
        following = f"cd {where} && {following}"
    return Outcome(OK, next=following, more=plans_added(bundle, names))


def export(recipe: Recipe) -> dict[str, Any]:
    """Run every stage and return the parity figures. Raises Refused, ParityFailed or BundleError."""
    if recipe.task is not None and not export_task(recipe.task).has_model:
        return without_model(recipe)
    if not recipe.model:
        raise Refused(f"{recipe.task} needs a MODEL, a folder or an id on the Hugging Face Hub")
    builder = None
    if recipe.plan is not None:
        from export.plans.builder import open_builder
        from export.precision.options import wanted

        builder = open_builder(recipe.plan.of(wanted(recipe)))  # who cannot build is found out before the work
    with stage("load") as note:
        # Imported here: help and wrong arguments need no torch, and what is missing is found out before the work.
        from export.exporters import graphs_of
        from export.load import load
        from export.optimize import optimize
        from export.tokenizer.vocabulary import without

        source = load(recipe)
        if recipe.task is None:
            note(source.task.tag)
        note(source.task.describe(source))
        if source.taken_out:
            note(without(source.taken_out))
        note(readable(source.weights_bytes))
    with new_bundle_folder(recipe.out) as folder, blaming_the_disk(folder):
        work = folder / "work"
        with stage("onnx") as note:
            source, graphs = graphs_of(source, work / "traced")
            if source.exporter_why:
                note(f"by {source.exporter} ({source.exporter_why})")
        with stage("optimize") as note:
            files = {
                name: optimize(graphs.pop(name), folder / "graphs" / name, work / name) for name in source.task.graphs
            }
            shutil.rmtree(work)
            note(readable(size_of(folder)))
        with stage("write"):
            from export.command.recipe_file import HEAD, RECIPE, resolved, text_of
            from export.write import write

            write(source, folder, {name: found[:2] for name, found in files.items()})
            if recipe.plan is not None:
                recipe.plan.check(open_bundle(folder).manifest)  # lengths that the model does not take
            (folder / RECIPE).write_text(text_of(resolved(recipe, source), HEAD), encoding="utf-8")
        from export.precision.ladder import choose_precisions, plan_of

        figures = choose_precisions(recipe, source, folder, files)
        plan = recipe.plan and plan_of(recipe, figures)
        if chosen := _chosen(recipe, figures, open_bundle(folder)):
            pinned = replace(resolved(recipe, source), precision=chosen, plan=plan)
            (folder / RECIPE).write_text(text_of(pinned, HEAD), encoding="utf-8")
            write_manifest(folder, open_bundle(folder).manifest)
        if plan is not None:
            from export.plan_from_onnx import write_plans

            write_plans(folder, plan, builder)
        interrupts.ignore()
    return figures


def _chosen(recipe: Recipe, figures: dict[str, Any], bundle: Bundle) -> str:
    """What the ladders came to, as --precision takes it; empty where speed, which is another every time, had no say."""
    from export.precision.ladder_cpu import precision_of
    from export.precision.options import wanted

    if "auto" not in recipe.precision and wanted(recipe).get("cpu") != "int8":
        return ""
    found = {**figures["precisions"], "cpu": precision_of(bundle)}
    return ",".join(f"{target}={found[target]}" for target in recipe.targets)


if __name__ == "__main__":
    interrupts.install()
    try:
        code = main()
    except BrokenPipeError:  # whoever read the output has ended, such as `| head`
        code = INTERRUPTED
    except _NO_DEFECTS:
        raise
    except BaseException:
        with without_effect():
            traceback.print_exc()
            if others := other_versions():
                print(f"perhaps it is for these packages: {others}; {INSTALL}", file=sys.stderr)
        code = DEFECT
    interrupts.ignore()  # nor while the interpreter ends
    settle()
    sys.exit(code)
