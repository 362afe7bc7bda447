"""What to export, read from the command line and checked before any work is done."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from export.errors import Refused
from export.list_tasks import ListTasks
from export.plan_recipe import PlanRecipe, add_plan_arguments, plan_recipe
from export.precision_options import add_precision_arguments, check_precision, targets_of, thresholds
from export.tasks import TAGS

POOLINGS = ("mean", "cls", "lasttoken", "max", "pooler", "none")
"""Ways to make one vector of those of all tokens (sentence-transformers' names) or patches; a task lists its own."""
TASK_OPTIONS = ("pooling", "max_length", "image_size")
"""Options that mean something to some tasks only; a task lists its own."""


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
    """Of every target, or TARGET=PRECISION with commas between (export/precision_options.py)."""
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


def recipe_from_argv(argv: Sequence[str]) -> Recipe:
    """The recipe of a command line.

    Raises Refused when an argument is wrong, the task is unknown, or the output folder holds something.
    """
    asked = _parser().parse_args(argv)
    if not asked.model and asked.task is None:
        raise Refused("name a MODEL, a folder or an id on the Hugging Face Hub; see python -m export --help")
    if asked.task is not None and asked.task not in TAGS:
        raise Refused(f"unknown task {asked.task!r}; known are: {', '.join(TAGS)}")
    if asked.max_length is not None and asked.max_length < 1:
        raise Refused(f"--max-length must be at least 1, got {asked.max_length}")
    targets = targets_of(asked.targets, asked.precision, asked.plan)
    check_precision(asked.precision, targets)
    out: Path = asked.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out} exists and is not empty; name another folder with --out, or remove it first")
    return Recipe(
        model=asked.model,
        task=asked.task,
        out=out,
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
    )


def _size(text: str) -> tuple[int, int]:
    height, times, width = text.lower().partition("x")
    try:
        size = int(height), int(width if times else height)
    except ValueError:
        size = (0, 0)
    if min(size) < 1:
        raise Refused(f"--image-size is HEIGHTxWIDTH in pixels, such as 480x640, got {text!r}")
    return size


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message}; see python -m export --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m export",
        description="Turn a Hugging Face model into a bundle that `python -m handler` serves.",
        epilog="Exit codes: 0 the bundle is written, 1 the parity gate failed, 2 refused (one sentence says why), "
        "130 interrupted. Without code 0 there is no bundle.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default="", help="a folder, or an id on the Hugging Face Hub"
    )
    parser.add_argument(
        "--task", metavar="TAG", help=f"one of: {', '.join(TAGS)} (default: what the model's files say)"
    )
    parser.add_argument("--list-tasks", action=ListTasks, help="print every task with a sentence, and exit")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="new or empty folder for the bundle")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a Hub id (default: main)")
    parser.add_argument("--pooling", choices=POOLINGS, help="instead of what the model's files say, or else mean")
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens a text is cut at (default: the model's), seconds of speech heard at once (30)",
    )
    parser.add_argument(
        "--image-size",
        type=_size,
        metavar="HxW",
        help="pixels, where the model's image processor keeps the aspect ratio of every image",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that comes with the model, while exporting"
    )
    add_precision_arguments(parser)
    plans = parser.add_argument_group("TensorRT plans", "For --plan; `python -m export plan BUNDLE` adds them later.")
    plans.add_argument("--plan", action="store_true", help="also build TensorRT plans for this machine's GPU")
    add_plan_arguments(plans, "--plan-precision")
    return parser
