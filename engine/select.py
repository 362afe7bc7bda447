"""Which engine at boot, and why. Rule: a pure decision on facts that were probed elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import ConfigError
from engine.probe import Gpu


@dataclass(frozen=True)
class Facts:
    """What the decision rests on."""

    gpu: Gpu | None
    providers: Sequence[str]
    """Execution providers that the installed ONNX Runtime was built with."""


@dataclass(frozen=True)
class Choice:
    """The engine to load and the reason, in words for the log and the health reply."""

    engine: str
    reason: str


def select(wanted: str, facts: Facts) -> Choice:
    """Decide for `wanted`, a value of the ENGINE setting.

    Raises ConfigError when an engine is asked for by name that cannot run here.
    """
    obstacle = _obstacle_to_cuda(facts)
    if wanted == "auto":
        if obstacle:
            return Choice("onnxruntime-cpu", obstacle)
        return Choice("onnxruntime-cuda", f"found {_describe(facts.gpu)}")
    if wanted == "onnxruntime-cuda" and obstacle:
        raise ConfigError(
            f"ENGINE=onnxruntime-cuda cannot run here: {obstacle}; "
            "run on a machine with an NVIDIA GPU and the gpu requirements, or set ENGINE=auto"
        )
    return Choice(wanted, "asked for by ENGINE")


def _obstacle_to_cuda(facts: Facts) -> str | None:
    if facts.gpu is None:
        return "no CUDA driver or no device"
    if "CUDAExecutionProvider" not in facts.providers:
        return f"found {_describe(facts.gpu)}, but the installed ONNX Runtime is the CPU build"
    return None


def _describe(gpu: Gpu | None) -> str:
    return f"{gpu.name} (sm_{gpu.compute_capability[0]}{gpu.compute_capability[1]})" if gpu else "no GPU"
