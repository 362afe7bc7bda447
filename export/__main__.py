"""`python -m export`: the stages in order, each a line on the screen. Exit codes are in the help text.

Other commands (`_COMMANDS`) are modules of their own.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.bundle import new_bundle_folder, open_bundle
from engine.errors import BundleError
from export.errors import ParityFailed, Refused, refusal_of
from export.progress import megabytes, stage, table
from export.recipe import Recipe, recipe_from_argv
from export.tasks import export_task
from export.without_model import without_model

OK, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130

_COMMANDS = {
    "keygen": ("export.signing", "keygen"),
    "sign": ("export.signing", "sign"),
    "verify": ("export.signing", "verify"),
    "plan --on-runpod": ("export.on_runpod", "main"),
}
"""First argument -> module and function; the function takes the other arguments and returns the exit code."""
_ON_RUNPOD = "--on-runpod"


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code. Whatever else than 0 it is, no bundle is there or changed."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and (command := _command(argv)):
            return command(argv[1:])
        if argv[:1] == ["plan"]:
            return _plan(argv[1:])
        recipe = recipe_from_argv(argv)
        figures = export(recipe)
    except ParityFailed as failure:
        print(f"error: {failure}\n", file=sys.stderr)
        print(table(failure.header, failure.rows), file=sys.stderr)
        return FAILED
    except (Refused, BundleError) as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        refused = refusal_of(error)
        if refused is None:
            raise
        print(f"error: {refused}", file=sys.stderr)
        return REFUSED
    _print_result(recipe.out, figures)
    return OK


def _command(argv: Sequence[str]) -> Callable[[Sequence[str]], int] | None:
    name = argv[0]
    if any(argument.partition("=")[0] == _ON_RUNPOD for argument in argv):
        name = f"{name} {_ON_RUNPOD}"
    if name not in _COMMANDS:
        return None
    module, function = _COMMANDS[name]
    command: Callable[[Sequence[str]], int] = getattr(import_module(module), function)
    return command


def _plan(argv: Sequence[str]) -> int:
    from export.plan_recipe import plan_command

    path, recipe = plan_command(argv)
    from export.plan_from_onnx import add_plans

    names = add_plans(path, recipe)
    files = open_bundle(path).manifest.files
    print(f"\n{table(('plan', 'size'), [(name, megabytes(files[name][0])) for name in names])}")
    print(f"\nbundle    {path}  {megabytes(_size(path))}")
    print(f"next      python -m engine inspect {path}")
    return OK


def export(recipe: Recipe) -> dict[str, Any]:
    """Run every stage and return the parity figures. Raises Refused, ParityFailed or BundleError."""
    if recipe.task is not None and not export_task(recipe.task).has_model:
        return without_model(recipe)
    if not recipe.model:
        raise Refused(f"{recipe.task} needs a MODEL, a folder or an id on the Hugging Face Hub")
    builder = None
    if recipe.plan is not None:
        from export.trt_builder import open_builder

        builder = open_builder(recipe.plan)  # a machine that cannot build is found out before the work
    with stage("load") as note:
        # Imported here and below, so that help and wrong arguments need no torch.
        from export.load import load

        source = load(recipe)
        if recipe.task is None:
            note(source.task.tag)
        note(source.task.describe(source))
        note(megabytes(source.weights_bytes))
    with new_bundle_folder(recipe.out) as folder:
        work = folder / "work"
        with stage("onnx"):
            from export.onnx_from_model import onnx_from_model

            graphs = {name: onnx_from_model(source, work / "traced", name) for name in source.task.graphs}
        with stage("optimize") as note:
            from export.optimize import optimize

            files = {
                name: optimize(graphs.pop(name), folder / "graphs" / name, work / name) for name in source.task.graphs
            }
            shutil.rmtree(work)
            note(megabytes(_size(folder)))
        with stage("write"):
            from export.write import write

            write(source, folder, {name: found[:2] for name, found in files.items()})
        from export.ladder import choose_precisions, plan_of

        figures = choose_precisions(recipe, source, folder, files)
        if recipe.plan is not None:
            from export.plan_from_onnx import write_plans

            write_plans(folder, plan_of(recipe, figures), builder)
    return figures


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _print_result(out: Path, figures: dict[str, Any]) -> None:
    files = open_bundle(out).manifest.files
    if files:
        print(f"\n{table(('file', 'size'), [(name, megabytes(size)) for name, (size, _) in files.items()])}")
    print(f"\nbundle    {out}  {megabytes(_size(out))}")
    if figures.get("ladder"):
        from export.ladder import LADDER_HEADER, ladder_rows

        print(f"\n{table(LADDER_HEADER, ladder_rows(figures))}\n")
    print(f"parity    {figures['worst']}")
    print(f"next      BUNDLE={out} python -m handler")


def _terminate(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # A cancelled CI job gets SIGTERM; it should leave as little behind as Ctrl-C does.
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
