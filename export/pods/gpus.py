"""The architecture of a GPU by its name at RunPod: what plans are tied to, known before a pod is paid for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from export.errors import Refused
from export.plans.recipe import PlanRecipe

BLACKWELL = "Blackwell"
UNSERVED = "unserved"
"""Of another maker, or older than Turing."""

# The first that fits: an RTX 2000 Ada is no RTX 20, a Quadro RTX 4000 no RTX 40, a Quadro RTX 5000 no RTX 50.
_ARCHITECTURES = (
    (r"\bAda\b|\bL4\b|\bL40S?\b", "sm_89"),
    (r"Quadro RTX|\bT4\b|RTX 20\d\d", "sm_75"),
    (r"\bB[23]00\b|\bGB[23]00\b|RTX PRO|RTX 50\d\d", BLACKWELL),
    (r"\bA100\b|\bA30\b", "sm_80"),
    (r"\bA(2|10G?|16|40)\b|RTX A\d|RTX 30\d\d", "sm_86"),
    (r"RTX 40\d\d", "sm_89"),
    (r"\bG?H[12]00\b", "sm_90"),
    (r"\bAMD\b|\b(K|M|P|G?V)\d+\b|\bGTX (9|10)\d\d\b|\bTITAN [VX]", UNSERVED),
)


def architecture_of(gpu_type: str) -> str:
    """As in "sm_89"; BLACKWELL or UNSERVED for all of these, "" for a name that is not known here."""
    return next((found for pattern, found in _ARCHITECTURES if re.search(pattern, gpu_type)), "")


def check(gpu_types: tuple[str, ...]) -> None:
    """Raise Refused for GPUs without a plan of this worker's, and for two that would be served by one plan."""
    if newer := [name for name in gpu_types if architecture_of(name) == BLACKWELL]:
        raise Refused(
            f"{', '.join(newer)}: Blackwell needs CUDA 12, this worker is built on 11.8; choose Turing to Hopper"
        )
    if unserved := [name for name in gpu_types if architecture_of(name) == UNSERVED]:
        raise Refused(
            f"{', '.join(unserved)}: this worker's TensorRT runs on NVIDIA's Turing to Hopper; choose one of these, "
            "such as 'NVIDIA L4'"
        )
    by_architecture: dict[str, str] = {}
    for name in gpu_types:
        architecture = architecture_of(name)
        if architecture and (other := by_architecture.setdefault(architecture, name)) != name:
            raise Refused(
                f"{other} and {name} are both {architecture}, for which a bundle holds one plan of a kind that runs on "
                "each; name one of them"
            )


def check_recipe(recipe: PlanRecipe, gpu_types: Sequence[str]) -> None:
    """Raise Refused for what this worker's image, or one of these GPUs, cannot build."""
    if recipe.builder == "tensorrt-rtx":
        raise Refused("--builder tensorrt-rtx builds without a GPU; leave --on-runpod out")
    if recipe.form == "hints":
        raise Refused("--form hints is for TensorRT 8, and pods build with the TensorRT 10 of the image; leave it out")
    if recipe.version_compatible:
        raise Refused(
            "--version-compatible needs libnvinfer_lean, which the image of a pod lacks; leave it out, or build on a "
            "machine that has it"
        )
    if not (turing := ", ".join(name for name in gpu_types if architecture_of(name) == "sm_75")):
        return
    if recipe.precision in ("tf32", "bf16"):
        raise Refused(f"{turing}: Turing has no {recipe.precision}; use fp16 or fp32, or choose Ampere to Hopper")
    if recipe.hardware_compatibility == "ampere-plus":
        raise Refused(
            f"{turing}: Turing has no --hardware-compatibility ampere-plus; leave it out, or choose Ampere to Hopper"
        )
