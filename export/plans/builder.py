"""Which TensorRT builds, and for which GPUs. Rule: asks the driver before anything of TensorRT is constructed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from engine.probe import gpu, missing_packages
from export.errors import Refused, Unavailable
from export.plans.messages import logger_of
from export.plans.network import hardware_levels, is_strongly_typed, targets_of
from export.plans.recipe import PlanRecipe

_AMPERE = (8, 0)
_PACKAGES = "requirements/all.txt (in a checkout `make setup EXTRA=gpu` does, in .venv-gpu)"
"""Not into an environment with ONNX Runtime for the CPU, whose files are the same as those of the one for CUDA."""


@dataclass(frozen=True)
class Target:
    """A GPU to build for; names and versions are empty where it is not in this machine."""

    compute_capability: str
    gpu_name: str = ""
    driver_version: str = ""
    cuda_version: str = ""


@dataclass(frozen=True)
class Builder:
    """The TensorRT module that builds, by the name that its plans carry, and its targets."""

    trt: Any
    runtime: str
    targets: Sequence[Target]


def open_builder(recipe: PlanRecipe) -> Builder:
    """The builder that `recipe` asks for. Raises Refused, or Unavailable with what is missing."""
    if recipe.builder == "tensorrt-rtx":
        trt = _import(("tensorrt_rtx", "tensorrt_rtx_bindings"), "tensorrt-rtx-cu12-bindings tensorrt-rtx-cu12-libs")
        _check_precision(recipe.precision, recipe.compute_capabilities)
        check_types(recipe, trt)
        known = targets_of(trt)
        if unknown := [pair for pair in recipe.compute_capabilities if pair not in known]:
            raise Refused(
                f"TensorRT-RTX {trt.__version__} cannot build for {_list(unknown)}; it can for {_list(known)}"
            )
        return Builder(trt, "tensorrt_rtx", [Target(f"{a}.{b}") for a, b in recipe.compute_capabilities])
    found = gpu()
    if found is None:
        raise Unavailable(
            "no NVIDIA driver or no GPU was found, and a plan is built on the GPU that it is for; run this on such a "
            "machine, or add --builder tensorrt-rtx --compute-capability 8.9 for a plan of TensorRT-RTX"
        )
    _check_precision(recipe.precision, [found.compute_capability])
    trt = _import(("tensorrt",), _PACKAGES)
    check_types(recipe, trt)
    levels = hardware_levels(trt)
    if recipe.hardware_compatibility not in levels:
        raise Refused(
            f"TensorRT {trt.__version__} has no hardware compatibility {recipe.hardware_compatibility}; "
            f"it has {', '.join(levels)}"
        )
    if recipe.hardware_compatibility == "ampere-plus" and found.compute_capability < _AMPERE:
        raise Refused(f"plans for ampere-plus are built on sm_80 and newer, and this GPU is {found}")
    if lacking := missing_packages("pycuda", "cuda"):  # found out before the build, not after it
        raise Unavailable(
            f"{' and '.join(lacking)} not installed, by which a plan is run before it is kept; install {_PACKAGES}"
        )
    trt.init_libnvinfer_plugins(logger_of(trt), "")  # the parser makes InstanceNormalization a plugin
    capability = ".".join(map(str, found.compute_capability))
    return Builder(trt, "tensorrt", [Target(capability, found.name, found.driver_version, found.cuda_version)])


def _check_precision(precision: str, capabilities: Iterable[tuple[int, int]]) -> None:
    lacking = [capability for capability in capabilities if capability < _AMPERE]
    if precision in ("tf32", "bf16") and lacking:
        raise Refused(f"a GPU of compute capability {_list(lacking)} has no {precision}; use fp16 or fp32")


def check_types(recipe: PlanRecipe, trt: Any) -> None:
    """Raise Refused for types that `trt` does not build; its parser, given bf16, may end the process (8.6)."""
    if recipe.form == "hints" and is_strongly_typed(trt):
        raise Refused("--form hints is for TensorRT 8; later versions run the types of the graph as they are")
    if recipe.precision == "bf16" and not is_strongly_typed(trt) and not hasattr(trt.BuilderFlag, "BF16"):
        raise Refused(
            f"TensorRT {trt.__version__} has no bf16; use fp16 or fp32 (--precision, --plan-precision; of a worker that"
            " builds at its boot PRECISION), or TensorRT 10"
        )


def _list(capabilities: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{major}.{minor}" for major, minor in capabilities)


def _import(names: Sequence[str], packages: str) -> Any:
    for name in names:
        try:
            return import_module(name)
        except (ImportError, OSError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == name:
                continue
            # Not it, but a package or a library that it loads.
            raise Unavailable(f"{name} does not load ({error}); install again {packages}") from error
    raise Unavailable(f"{names[-1]} is not installed; install {packages}")
