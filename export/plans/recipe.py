"""What plans to build, read from the command line; each check is made as soon as what it needs is known.

That is for most the command line, for a GPU the builder before the work (builder.py), for lengths the manifest.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.batching.costs import BEST_TOKENS_OF_A_GPU
from engine.bucket import Bucket, Ladder
from engine.plans.sidecar import HARDWARE_COMPATIBILITY, PRECISIONS
from export.command.arguments import Parser
from export.errors import Refused
from export.precision.options import AUTO

if TYPE_CHECKING:
    from engine.bundle import Manifest

AS_BUNDLE = ""
"""Stands for the precision that the bundle's ladder found for TensorRT; fp16 where it has looked for none."""
BUILDERS = ("tensorrt", "tensorrt-rtx")
PROFILES = ("bucket", "length")
FORMS = ("half", "sums", "exported", "hints")
"""Of graphs in half precision (export/plans/precision.py)."""
NO_LIBRARY_TACTICS = "TENSORRT_NO_LIBRARY_TACTICS"
"""Environment variable: 1 is --no-library-tactics."""

_BATCHES = (1, 4, 8, 16, 32)
_SHORTEST = 16
_MAX = 0
"""Stands for the model's own maximum among `lengths`."""


@dataclass(frozen=True)
class PlanRecipe:
    """The plans of one bundle."""

    precision: str = AS_BUNDLE
    """One of engine.plans.sidecar.PRECISIONS; tf32 is fp32 with shorter mantissas in products."""
    batches: tuple[int, ...] = _BATCHES
    lengths: tuple[int, ...] | None = None
    """None: powers of two from 16 up and the model's maximum."""
    profiles: str = "bucket"
    """bucket: kernels for exactly one shape each. length: one profile a length, for all batch sizes; builds faster."""
    builder: str = "tensorrt"
    compute_capabilities: tuple[tuple[int, int], ...] = ()
    """Of tensorrt-rtx, which builds without a GPU."""
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    optimization_level: int = 3
    workspace_mib: int | None = None
    """Scratch memory of the builder; None: as much as the GPU has."""
    library_tactics: bool = True
    """False leaves cuBLAS and cuDNN out."""
    pin_types: bool = False
    """Hold an untyped network (before TensorRT 10) to the fp32 of its layers, instead of letting it choose."""
    form: str = ""
    """Of the graph in half precision, which is then made anew; "": the bundle's, else the first that passes."""
    layers: bool = False
    """Have the builder tell of its kernels, whose names the plan then holds."""

    def of(self, precisions: Mapping[str, str]) -> PlanRecipe:
        """With a precision; `precisions` are the bundle's by target."""
        return self if self.precision else replace(self, precision=precisions.get("tensorrt", "fp16"))

    def check(self, manifest: Manifest) -> None:
        """Raise Refused where a bundle has nothing to build, its model does not take a length, or options clash."""
        if not manifest.graphs:
            raise Refused(f"{manifest.task} has no model, so that there is nothing to build a plan from")
        self.check_form()
        for name in manifest.graphs:
            self.ladder(manifest, name)

    def check_asked(self, precisions: Mapping[str, str]) -> None:
        """Raise Refused where it clashes with `precisions`, which an export is asked for by target."""
        if self.precision == "int8" != precisions.get("tensorrt"):
            raise Refused(
                "--plan-precision int8 builds from a graph in int8, which is made for TensorRT only when asked for; "
                "add --precision tensorrt=int8"
            )
        self.of(precisions).check_form()

    def check_form(self) -> None:
        """Raise Refused where graphs in its precision have no form; one that is still open may have."""
        if self.form and self.precision not in ("fp16", "bf16", AUTO, AS_BUNDLE):
            raise Refused(f"--form is for plans in fp16 and bf16, not in {self.precision}")

    def ladder(self, manifest: Manifest, graph: str) -> Ladder:
        """The buckets of one graph, by default without those that a worker's batches do not come to.

        Raises Refused when a length is over what the model takes.
        """
        if not any(spec.length_axis is not None for spec in manifest.graphs[graph].inputs):
            return Ladder(self.batches, (1,))
        longest = manifest.max_length(graph)
        if self.lengths is None:
            powers = (_SHORTEST << step for step in range(longest.bit_length()))
            lengths = (*(length for length in powers if length < longest), longest)
            return Ladder(self.batches, lengths).within(BEST_TOKENS_OF_A_GPU)
        asked = sorted({length or longest for length in self.lengths})
        if asked[-1] > longest:
            raise Refused(f"--lengths holds {asked[-1]}, and {manifest.model} takes at most {longest}; write max")
        return Ladder(self.batches, asked)

    def shapes(self, ladder: Ladder) -> list[tuple[tuple[Bucket, ...], tuple[Bucket, Bucket, Bucket]]]:
        """For every optimization profile the buckets that it serves, and the smallest, best and largest shape."""
        if self.profiles == "bucket":
            return [((bucket,), (bucket, bucket, bucket)) for bucket in ladder]
        rows = [tuple(bucket for bucket in ladder if bucket.length == length) for length in ladder.lengths]
        return [(row, (row[0], row[-1], row[-1])) for row in rows]


def add_plan_arguments(parser: argparse._ActionsContainer, precision: str) -> None:
    """Declare the options that a plan is built with; `precision` is the name of the option for its precision."""
    parser.add_argument(
        precision,
        dest="plan_precision",
        choices=PRECISIONS,
        default=AS_BUNDLE,
        help="of plans (default: what the bundle's ladder found for TensorRT, else fp16); int8 needs a bundle that was "
        "exported with tensorrt=int8",
    )
    parser.add_argument(
        "--batches",
        type=_sizes,
        default=_BATCHES,
        metavar="N,N",
        help="batch sizes of the ladder (default: 1,4,8,16,32)",
    )
    parser.add_argument(
        "--lengths",
        type=_lengths,
        metavar="N,max",
        help="lengths of the ladder (default: 16,32,64 ... and max, without batches that are too large to suit a GPU)",
    )
    parser.add_argument(
        "--profiles",
        choices=PROFILES,
        default="bucket",
        help="a profile for each bucket (fastest plan) or each length (default: %(default)s)",
    )
    parser.add_argument(
        "--builder", choices=BUILDERS, default="tensorrt", help="tensorrt-rtx needs no GPU (default: %(default)s)"
    )
    parser.add_argument(
        "--compute-capability", type=_capabilities, default=(), metavar="8.6,8.9", help="targets of tensorrt-rtx"
    )
    parser.add_argument(
        "--hardware-compatibility",
        choices=HARDWARE_COMPATIBILITY,
        default="none",
        help="what other GPUs may load it (default: %(default)s)",
    )
    parser.add_argument("--version-compatible", action="store_true", help="later versions of TensorRT may load it")
    parser.add_argument(
        "--optimization-level", type=int, choices=range(6), default=3, metavar="0..5", help="longer search (default: 3)"
    )
    parser.add_argument("--workspace-mib", type=_size, metavar="N", help="limit of the builder's scratch memory")
    parser.add_argument(
        "--no-library-tactics", action="store_true", help=f"leave out cuBLAS and cuDNN (also {NO_LIBRARY_TACTICS}=1)"
    )
    parser.add_argument(
        "--pin-types", action="store_true", help="TensorRT 8: hold layers to fp32 where the graph says so, at some cost"
    )
    parser.add_argument(
        "--form",
        choices=FORMS,
        default="",
        help="make the graph of fp16 or bf16 anew: half (all of it), sums (sums, squares and exponentials in fp32), "
        "exported (half, with attention as exported), hints (TensorRT 8: fp32, which it may lower); default: the "
        "bundle's, else half, or sums where that fails",
    )
    parser.add_argument(
        "--layers", action="store_true", help="say how many kernels a plan has, and how many are fused attention"
    )


def plan_recipe(asked: argparse.Namespace) -> PlanRecipe:
    """The recipe of parsed arguments. Raises Refused when some do not go together."""
    is_rtx = asked.builder == "tensorrt-rtx"
    if is_rtx and not asked.compute_capability:
        raise Refused(
            "--builder tensorrt-rtx builds for the GPUs that --compute-capability names, such as 8.6,8.9,12.0"
        )
    if asked.compute_capability and not is_rtx:
        raise Refused(
            "--compute-capability is for --builder tensorrt-rtx; plain TensorRT builds for the GPU that it runs on"
        )
    if is_rtx and (asked.hardware_compatibility != "none" or asked.version_compatible):
        raise Refused("--hardware-compatibility and --version-compatible are for plain TensorRT, not for tensorrt-rtx")
    if asked.form == "hints" and asked.pin_types:
        raise Refused("--form hints and --pin-types exclude each other: of fp32.onnx every layer would be held to fp32")
    recipe = PlanRecipe(
        precision=asked.plan_precision,
        batches=asked.batches,
        lengths=asked.lengths,
        profiles=asked.profiles,
        builder=asked.builder,
        compute_capabilities=asked.compute_capability,
        hardware_compatibility=asked.hardware_compatibility,
        version_compatible=asked.version_compatible,
        optimization_level=asked.optimization_level,
        workspace_mib=asked.workspace_mib,
        library_tactics=not asked.no_library_tactics and os.environ.get(NO_LIBRARY_TACTICS, "0") in ("", "0"),
        pin_types=asked.pin_types,
        form=asked.form,
        layers=asked.layers,
    )
    recipe.check_form()
    return recipe


def plan_command(argv: Sequence[str]) -> tuple[Path, PlanRecipe]:
    """The bundle and the recipe of `python -m export plan ...`. Raises Refused."""
    parser = Parser(
        prog="python -m export plan",
        description="Add TensorRT plans for this machine's GPU to a bundle, one for each of its graphs. Plans from "
        "rented GPUs: python -m export plan --on-runpod --help.",
        epilog="Exit codes: 0 added, 1 a plan failed the parity gate, 2 refused (one sentence says why), 3 disk, "
        "memory, a package or a GPU is missing, 4 a defect of the export, 130 interrupted. Without code 0 the bundle "
        "is as it was.",
    )
    parser.add_bundle()
    parser.add_json()
    add_plan_arguments(parser, "--precision")
    asked = parser.parse_args(argv)
    return asked.bundle, plan_recipe(asked)


def _size(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 up")
    return value


def _listed(text: str, read: Callable[[str], int]) -> tuple[int, ...]:
    try:
        return tuple(sorted({read(part.strip()) for part in text.split(",")}))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 1 up, such as 1,8,32") from None


def _sizes(text: str) -> tuple[int, ...]:
    return _listed(text, _size)


def _lengths(text: str) -> tuple[int, ...]:
    return _listed(text, lambda part: _MAX if part == "max" else _size(part))


def _capabilities(text: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = [part.strip().split(".") for part in text.split(",")]
        return tuple((int(major), int(minor)) for major, minor in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of compute capabilities, such as 8.6,8.9") from None
