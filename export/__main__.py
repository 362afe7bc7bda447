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
    """Export what the arguments say and return the exit code. Whatever else than 0 it is, there is no bundle."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and (command := _command(argv)):
            return command(argv[1:])
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


def export(recipe: Recipe) -> dict[str, Any]:
    """Run every stage and return the parity figures. Raises Refused, ParityFailed or BundleError."""
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

            graph = onnx_from_model(source, work / "traced")
        with stage("optimize") as note:
            from export.optimize import optimize

            *files, places = optimize(graph, folder / "graphs" / "model", work / "fused")
            del graph
            shutil.rmtree(work)
            note(megabytes(_size(folder)))
        with stage("write"):
            from export.write import add_parity, write

            write(source, folder, *files)
        with stage("parity") as note:
            from export.parity import parity, worst

            figures = parity(source, folder, recipe.parity_threshold if recipe.precision == "fp32" else None)
            add_parity(folder, figures)
            note(f"{figures[source.task.unit]} {source.task.unit}, {worst(source, figures)}")
        if recipe.precision == "int8":
            with stage("int8") as note:
                fp32 = figures["graphs"]
                figures = _quantize(source, folder, files[0], places, recipe.parity_threshold)
                figures["graphs"].update(fp32)
                add_parity(folder, figures)
                note(f"{figures['kept']}, {worst(source, figures)}")
    figures["worst"] = worst(source, figures)
    return figures


def _quantize(source: Any, folder: Path, portable: Path, places: Any, threshold: float | None) -> dict[str, Any]:
    """The figures of the first step of the int8 ladder that passes the gate, and why the ones before it did not.

    Raises ParityFailed when none passes.
    """
    from export.parity import parity
    from export.precision import STEPS, int8
    from export.write import choose

    refused: dict[str, str] = {}
    for step in STEPS:
        work = folder / "work"
        choose(folder, "int8", int8(portable, step, work, places))
        shutil.rmtree(work)
        try:
            figures = parity(source, folder, threshold)
        except ParityFailed as failure:
            if step is STEPS[-1]:
                raise
            refused[step.name] = f"{failure}; worst: {', '.join(failure.rows[0])}"
        else:
            return {**figures, "kept": f"int8: {step.name}", "refused": refused}
    raise AssertionError("the ladder has no steps")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _print_result(out: Path, figures: dict[str, Any]) -> None:
    files = open_bundle(out).manifest.files
    print(f"\n{table(('file', 'size'), [(name, megabytes(size)) for name, (size, _) in files.items()])}")
    print(f"\nbundle    {out}  {megabytes(_size(out))}")
    print(f"parity    {figures['worst']}")
    print(f"next      BUNDLE={out} python -m handler")


def _terminate(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # A cancelled CI job gets SIGTERM; it should leave as little behind as Ctrl-C does.
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
