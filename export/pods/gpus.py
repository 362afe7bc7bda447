"""The architecture of a GPU by its name at RunPod: what plans are tied to, known before a pod is paid for."""

from __future__ import annotations

import re

from export.errors import Refused

BLACKWELL = "Blackwell"

# The first that fits: an RTX 2000 Ada is no RTX 20, a Quadro RTX 4000 no RTX 40.
_ARCHITECTURES = (
    (r"\bAda\b|\bL4\b|\bL40S?\b", "sm_89"),
    (r"\bB[23]00\b|\bGB[23]00\b|RTX PRO|RTX 50\d\d", BLACKWELL),
    (r"Quadro RTX|\bT4\b|RTX 20\d\d", "sm_75"),
    (r"\bA100\b|\bA30\b", "sm_80"),
    (r"\bA(2|10G?|16|40)\b|RTX A\d|RTX 30\d\d", "sm_86"),
    (r"RTX 40\d\d", "sm_89"),
    (r"\bG?H[12]00\b", "sm_90"),
)


def architecture_of(gpu_type: str) -> str:
    """As in "sm_89"; BLACKWELL for all of these, "" for a name that is not known here."""
    return next((found for pattern, found in _ARCHITECTURES if re.search(pattern, gpu_type)), "")


def check(gpu_types: tuple[str, ...]) -> None:
    """Raise Refused for GPUs without a plan of this worker's, and for two that would be served by one plan."""
    if newer := [name for name in gpu_types if architecture_of(name) == BLACKWELL]:
        raise Refused(
            f"{', '.join(newer)}: Blackwell needs CUDA 12, this worker is built on 11.8; choose Turing to Hopper"
        )
    by_architecture: dict[str, str] = {}
    for name in gpu_types:
        architecture = architecture_of(name)
        if architecture and (other := by_architecture.setdefault(architecture, name)) != name:
            raise Refused(
                f"{other} and {name} are both {architecture}, for which a bundle holds one plan of a kind that runs on "
                "each; name one of them"
            )
