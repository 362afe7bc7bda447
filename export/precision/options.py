"""What the ladder and its gate are asked for, read from the command line; checked before any work is done.

Rule: no import of torch or onnx, for help and wrong arguments need none.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from export.command.arguments import file_path
from export.errors import Refused

if TYPE_CHECKING:
    from export.recipe import Recipe

AUTO = "auto"
PRECISIONS = (AUTO, "fp32", "fp16", "bf16", "int8")
DYNAMIC, STATIC = "int8-dynamic", "int8-static"
"""int8 of the CPU in this form, whichever of the two is faster on the machine that exports."""
TARGETS: Mapping[str, Sequence[str]] = {
    # ONNX Runtime on a CPU computes fp16 by casting to fp32 and back: slower, no better
    "cpu": (AUTO, "fp32", "int8", DYNAMIC, STATIC),
    "cuda": (AUTO, "fp32", "fp16"),  # ONNX Runtime's CUDA provider: no bf16 for most operators, int8 as slow as fp32
    "tensorrt": PRECISIONS,  # int8 only by name
}
"""What runs a graph, and the precisions that make sense there."""

FIRST = ""
"""Stands for the first of the task's measures among thresholds."""


def add_precision_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare the options of the ladder and its gate."""
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="P",
        help="auto (the fastest that passes the gate), fp32, fp16, bf16 or int8, for every target that can run it; "
        f"for the CPU also {DYNAMIC} or {STATIC}, its two forms; or by target: cpu=int8,tensorrt=auto "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--targets",
        metavar="T,T",
        help="what the bundle is for: cpu, cuda, tensorrt (default: cpu, what is named, and tensorrt with --plan "
        "--precision auto)",
    )
    parser.add_argument(
        "--parity-data",
        type=file_path,
        metavar="FILE",
        help="more inputs for the gate and for calibration: a job's payload in JSON on every line",
    )
    parser.add_argument(
        "--parity-threshold",
        action="append",
        default=[],
        metavar="NAME=X",
        help="another limit of the task's parity gate, such as min_cosine=0.99; without NAME= the task's first",
    )
    parser.add_argument(
        "--allow-parity-failure",
        action="store_true",
        help="write a bundle that fails the gate, marked; workers refuse it unless ALLOW_PARITY_FAILURE=1",
    )


def targets_of(targets: str | None, precision: str, has_plan: bool) -> tuple[str, ...]:
    """The targets that were asked for, by name or by their precision. Raises Refused."""
    named = [part.strip() for part in targets.split(",")] if targets else ["cpu"]
    if targets is None and has_plan and precision == AUTO:
        named.append("tensorrt")
    named += [name for name in _by_target(precision) if name not in named]
    for name in named:
        if name not in TARGETS:
            raise Refused(f"unknown target {name!r}; known are: {', '.join(TARGETS)}")
    return tuple(name for name in TARGETS if name in named)


def check_precision(precision: str, targets: Sequence[str]) -> None:
    """Raises Refused for a precision that nothing can run which the bundle is for."""
    for target, one in _by_target(precision).items():
        if one not in TARGETS[target]:
            raise Refused(f"--precision {target}={one}: {target} takes one of {', '.join(TARGETS[target])}")
    if "=" in precision:
        return
    if precision not in (known := (*PRECISIONS, DYNAMIC, STATIC)):
        raise Refused(f"unknown precision {precision!r}; known are: {', '.join(known)}")
    able = [name for name, known in TARGETS.items() if precision in known]
    if not set(able) & set(targets):
        raise Refused(
            f"--precision {precision} is for {' and '.join(able)}; add --targets {able[-1]}, or write "
            f"{able[-1]}={precision}"
        )


def thresholds(texts: Sequence[str]) -> dict[str, float]:
    """Limits by name; FIRST for one without. Raises Refused."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if not 0 <= limit <= 1:  # false for NaN as well
            raise Refused(f"--parity-threshold is NAME=X with a number X from 0 to 1, got {text!r}")
        found[name.strip()] = limit
    return found


def wanted(recipe: Recipe) -> dict[str, str]:
    """The precision of every target of `recipe`; fp32 where the one that was asked for makes no sense."""
    by_target = _by_target(recipe.precision)
    if "=" in recipe.precision:
        return {target: by_target.get(target, "fp32") for target in recipe.targets}
    return {target: recipe.precision if recipe.precision in TARGETS[target] else "fp32" for target in recipe.targets}


def _by_target(precision: str) -> dict[str, str]:
    if "=" not in precision:
        return {}
    found: dict[str, str] = {}
    for part in precision.split(","):
        target, is_pair, one = part.strip().partition("=")
        if not is_pair or target not in TARGETS:
            raise Refused(f"--precision {part!r} is not TARGET=PRECISION with a target of {', '.join(TARGETS)}")
        found[target] = one
    return found
