"""What to export, read from the command line and checked before any work is done."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from export.command.arguments import Parser, check_utf8, file_path
from export.command.list_tasks import LIST_TASKS, ListTasks
from export.command.recipe_file import MODEL, PLAN, arguments_of, options_of
from export.errors import Refused
from export.plans.recipe import PlanRecipe, add_plan_arguments, plan_recipe
from export.precision.options import add_precision_arguments, check_precision, targets_of, thresholds, wanted
from export.tasks import TAGS

POOLINGS = ("mean", "cls", "lasttoken", "max", "weightedmean", "pooler", "none")
"""Ways to make one vector of those of all tokens (sentence-transformers' names) or patches; a task lists its own."""
TASK_OPTIONS = ("pooling", "max_length", "image_size")
"""Options that mean something to some tasks only; a task lists its own."""
EXPORTERS = ("auto", "optimum", "torchscript", "dynamo")
"""What traces a model: auto is the first that can of those that its task names (export/exporters.py)."""


_KEPT = ("adapter", "revision", "parity_data", "parity_threshold", "out", "write_recipe")
"""Options of any text, which files of the export say again."""
_ALIASES = {
    "embedding": "feature-extraction",
    "embeddings": "feature-extraction",
    "ner": "token-classification",
    "reranking": "text-ranking",
    "semantic-segmentation": "image-segmentation",
    "sentiment-analysis": "text-classification",
}
"""Other names of tasks, transformers' own among them -> the tag."""


@dataclass(frozen=True)
class Recipe:
    """One export. None means: as the model's files say."""

    model: str
    """A folder, or an id on the Hugging Face Hub; empty for a task without a model."""
    task: str | None
    """None: as the model's files say."""
    out: Path
    revision: str | None = None
    pooling: str | None = None
    max_length: int | None = None
    """In tokens, special tokens included; of sound in seconds."""
    precision: str = "fp32"
    """Of every target, or TARGET=PRECISION with commas between (export/precision/options.py)."""
    trust_remote_code: bool = False
    parity_thresholds: Mapping[str, float] = field(default_factory=dict)
    """Limits of the task's measures, by name; the empty name stands for the first."""
    image_size: tuple[int, int] | None = None
    """Height and width in pixels, for a model whose image processor leaves them open."""
    plan: PlanRecipe | None = None
    """TensorRT plans to build at the end."""
    targets: tuple[str, ...] = ("cpu",)
    """What the bundle is for, of precision_options.TARGETS."""
    parity_data: Path | None = None
    """Payloads for the gate, a line each."""
    allow_parity_failure: bool = False
    adapters: tuple[str, ...] = ()
    """LoRA adapters, folders or ids on the Hub, merged into the weights one after the other."""
    exporter: str = "auto"
    """One of EXPORTERS."""


@dataclass(frozen=True)
class Command:
    """A command line."""

    recipe: Recipe
    write_recipe: Path | None = None
    """Where to write the recipe, in place of an export."""


def command_from_argv(argv: Sequence[str]) -> Command:
    """What a command line asks for, with the recipe file that it names.

    Raises Refused when an argument or the file is wrong, the task is unknown, or the output folder holds something.
    """
    parser = _parser()
    asked = parser.parse_args(argv)
    if asked.recipe is not None:
        of_file = arguments_of(asked.recipe, parser, argv)
        if asked.model:  # another model has other revisions
            of_file = [argument for argument in of_file if not argument.startswith("--revision=")]
        asked = parser.parse_args([*of_file, *argv])
    model: str = asked.model or asked.model_of_recipe
    if asked.out is None and asked.write_recipe is None:
        raise Refused("the following arguments are required: --out; see python -m export --help")
    if not model and asked.task is None:
        raise Refused("name a MODEL, a folder or an id on the Hugging Face Hub; see python -m export --help")
    check_utf8("the model", model)
    for option in _KEPT:
        found = getattr(asked, option)
        for one in found if isinstance(found, list) else [found]:
            whole = one.absolute() if one and option in ("out", "write_recipe") else one
            check_utf8(f"--{option.replace('_', '-')}", whole)
    if asked.task is not None and asked.task not in TAGS:
        raise Refused(f"unknown task {asked.task!r}; {_meant(asked.task)}known are: {', '.join(TAGS)}")
    if not asked.plan:
        _refuse_plan_options(parser, argv)
    if asked.max_length is not None and asked.max_length < 1:
        raise Refused(f"--max-length must be at least 1, got {asked.max_length}")
    targets = targets_of(asked.targets, asked.precision, asked.plan)
    check_precision(asked.precision, targets)
    recipe = Recipe(
        model=model,
        task=asked.task,
        out=_out(asked),
        revision=asked.revision,
        pooling=asked.pooling,
        max_length=asked.max_length,
        image_size=asked.image_size,
        precision=asked.precision,
        trust_remote_code=asked.trust_remote_code,
        parity_thresholds=thresholds(asked.parity_threshold),
        plan=plan_recipe(asked) if asked.plan else None,
        targets=targets,
        parity_data=asked.parity_data,
        allow_parity_failure=asked.allow_parity_failure,
        adapters=tuple(asked.adapter),
        exporter=asked.exporter,
    )
    if recipe.plan is not None:
        recipe.plan.check_asked(wanted(recipe))
    return Command(recipe, asked.write_recipe)


def _meant(task: str) -> str:
    """For the sentence about a task that there is not."""
    name = task.lower().replace("_", "-")
    near = [_ALIASES[name]] if name in _ALIASES else get_close_matches(name, TAGS, 1, 0.8)
    return f"did you mean {near[0]}? " if near else ""


def _refuse_plan_options(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Raise Refused for an option of plans where none is to be built; those of a file are for when one is."""
    of_plans = {name for action in options_of(parser)[PLAN].values() for name in action.option_strings}
    for argument in argv:
        if (name := argument.partition("=")[0]) in of_plans:
            raise Refused(
                f"{name} is for TensorRT plans, and none is built without --plan; add it, or leave {name} out"
            )


def _out(asked: argparse.Namespace) -> Path:
    """The folder for the bundle; an empty path where a recipe is to be written that leaves it open. Raises Refused."""
    out: Path | None = asked.out
    if asked.write_recipe is not None:
        if asked.write_recipe.is_dir():
            raise Refused(f"{asked.write_recipe} is a folder; name a new file in it with --write-recipe")
        if asked.write_recipe.exists() and asked.write_recipe != asked.recipe:
            raise Refused(f"{asked.write_recipe} exists; remove it first or name another file with --write-recipe")
        if not asked.write_recipe.absolute().parent.is_dir():
            raise Refused(f"{asked.write_recipe.parent} is not a folder; make it first, or name another --write-recipe")
        return out or Path()
    assert out is not None
    try:
        os.stat(out)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        pass  # told below, by the name of the file
    except OSError as error:  # a loop of links, a name that is too long
        raise Refused(f"{out} cannot be a folder ({error.strerror}); name another one with --out") from None
    if out.exists() and not out.is_dir():
        raise Refused(f"{out} is a file; name a folder with --out")
    if out.exists() and out.samefile(os.curdir) and not any(out.iterdir()):
        raise Refused(
            f"{out} is the folder that this runs in, which a bundle cannot replace; name one in it with --out"
        )
    if out.exists() and any(out.iterdir()):
        raise Refused(f"{out} exists and is not empty; name another folder with --out, or remove it first")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise Refused(f"{above} is a file, so that {out} cannot be made; name another folder with --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise Refused(f"{above} cannot be written; change its permissions or name another folder with --out")
    return out


def _size(text: str) -> tuple[int, int]:
    height, times, width = text.lower().partition("x")
    try:
        size = int(height), int(width if times else height)
    except ValueError:
        size = (0, 0)
    if min(size) < 1:
        raise Refused(f"--image-size is HEIGHTxWIDTH in pixels, such as 480x640, got {text!r}")
    return size


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m export",
        description="Turn a Hugging Face model into a bundle that `python -m handler` serves.",
        epilog="Exit codes: 0 the bundle is written, 1 the parity gate failed, 2 refused (one sentence says why), "
        "3 disk, memory, a package, the Hub or, for plans, a GPU is missing, 4 a defect of the export, 130 "
        "interrupted. Without code 0 there is no bundle.",
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default="", help="a folder, or an id on the Hugging Face Hub"
    )
    parser.add_argument(
        "--task", metavar="TAG", help=f"one of: {', '.join(TAGS)} (default: what the model's files say)"
    )
    parser.add_argument(LIST_TASKS, action=ListTasks, help="print every task with a sentence, and exit")
    parser.add_argument(MODEL, dest="model_of_recipe", default="", help=argparse.SUPPRESS)
    parser.add_argument(
        "--out",
        type=file_path,
        metavar="FOLDER",
        help="new or empty folder for the bundle; needed, here or in the recipe",
    )
    parser.add_argument(
        "--recipe", type=file_path, metavar="FILE", help="a recipe.toml; options given here replace its own"
    )
    parser.add_argument(
        "--write-recipe",
        type=file_path,
        metavar="FILE",
        help="write these options as a recipe.toml, and do nothing else",
    )
    parser.add_json()
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a Hub id (default: main)")
    parser.add_argument(
        "--pooling",
        choices=POOLINGS,
        help="instead of what the model's files say (default: that, or else what suits such models)",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens a text is cut at (default: the model's, 8192 at most), seconds of speech heard at once "
        "(default: 30)",
    )
    parser.add_argument(
        "--image-size",
        type=_size,
        metavar="HxW",
        help="pixels, where the model's image processor keeps the aspect ratio of every image",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="A",
        help="a LoRA adapter (PEFT) to merge into the model, a folder or an id, as ID@REVISION where pinned; may be "
        "given several times",
    )
    parser.add_argument(
        "--exporter",
        choices=EXPORTERS,
        default="auto",
        help="what traces the model; auto: optimum for texts and spectrograms, torchscript for images and waveforms, "
        "and for what these do not know or cannot trace torch.export (dynamo) (default: %(default)s)",
    )
    parser.add_argument(
        "--trust-remote-code",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="run Python code that comes with the model, while exporting",
    )
    add_precision_arguments(parser)
    parser.add_argument_group(
        "other commands",
        "`python -m export plan BUNDLE` adds TensorRT plans to a bundle, with --on-runpod from rented GPUs; `keygen`, "
        "`sign` and `verify` are for signed bundles; each has --help. `python -m engine inspect BUNDLE` shows one.",
    )
    plans = parser.add_argument_group("TensorRT plans", "For --plan; `python -m export plan BUNDLE` adds them later.")
    plans.add_argument(
        "--plan",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="also build TensorRT plans for this machine's GPU",
    )
    add_plan_arguments(plans, "--plan-precision")
    return parser
