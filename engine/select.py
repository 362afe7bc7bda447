"""Which engine at boot, and why. Rule: a pure decision on facts that were probed elsewhere.

The ladder, best first; ENGINE=auto takes the first step that holds, every other value of ENGINE knows its own only:

    exact plan              in the bundle, for this architecture and version of TensorRT
    plan for several GPUs   in the bundle, built with --hardware-compatibility
    version-compatible plan in the bundle
    plan on the volume      built by an earlier boot, in PLAN_CACHE
    build                   here and now, with BUILD_ON_BOOT=1
    ONNX Runtime on CUDA
    ONNX Runtime on the CPU with ALLOW_CPU=1, or where nobody asked for a GPU
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any, NamedTuple, TypeAlias

from engine.config import Settings
from engine.errors import ConfigError
from engine.plans.sidecar import Machine, PlanFile, mismatch
from engine.probe import Gpu

FASTEST_FIRST = ("fp16", "bf16", "int8", "tf32", "fp32")
"""Precisions of plans. All that are in a bundle have passed the parity gate, so the fastest is taken: by what was
measured when the plans were built, where that can be compared (`_fastest`), else in this order. int8 comes after the
halves because it need not be faster (what stands between its products stays in half or fp32) and answers less exactly.
"""

_NOISE = 1.03
"""Two measurements of one plan may differ so much; plans that are closer keep the order of FASTEST_FIRST."""

_BLACKWELL = (10, 0)
_TOLD = 2  # plans of a step whose reasons are told


@dataclass(frozen=True)
class Facts:
    """What the decision rests on."""

    gpu: Gpu | None
    providers: Sequence[str]
    """Execution providers that the installed ONNX Runtime was built with; empty without one."""
    no_gpu: str = ""
    """What the driver says where `gpu` is None."""
    promised: str | None = None
    """What says that this machine was to have a GPU."""
    device_file: bool = False
    """Whether the kernel shows an NVIDIA GPU."""
    tensorrt: str | None = None
    """Version of the installed TensorRT."""
    missing: Sequence[str] = ()
    """Packages beside it that its engine needs and that are not installed."""
    plans: Sequence[PlanFile] = ()
    """In the bundle, for the graph in question."""
    cached: Sequence[PlanFile] = ()
    """On the volume, for this very graph."""
    struck: Mapping[str, str] = field(default_factory=dict)
    """Plans (by path), engines, "plan cache" and "build" that are out, and why: stale, damaged, failed a moment ago."""


class Step(NamedTuple):
    """A step of the ladder that was looked at."""

    name: str
    taken: bool
    reason: str


class Choice(NamedTuple):
    """The engine to load and the reason, in words for the log and the health reply."""

    engine: str
    reason: str
    plan: PlanFile | None = None
    build: bool = False
    """No plan yet: build one, then decide again."""
    ladder: Sequence[Step] = ()

    def report(self) -> list[dict[str, Any]]:
        """The steps, for the health reply."""
        return [step._asdict() for step in self.ladder]


_Outcome: TypeAlias = "tuple[str, Choice | str]"  # a step's name, and what is taken, without its ladder, or why nothing


def select(settings: Settings, facts: Facts) -> Choice:
    """Decide for the ENGINE setting.

    Raises ConfigError with every reason when nothing that it allows can run here.
    """
    if settings.engine not in _WALKS:
        return Choice(settings.engine, "asked for by ENGINE")
    steps: list[Step] = []
    for name, outcome in _WALKS[settings.engine](settings, facts):
        if isinstance(outcome, Choice):
            steps.append(Step(name, True, outcome.reason))
            return outcome._replace(ladder=tuple(steps))
        steps.append(Step(name, False, outcome))
    alone = len(steps) == 1
    told = "; ".join(step.reason if alone else f"{step.name}: {step.reason}" for step in steps)
    raise ConfigError(f"ENGINE={settings.engine} cannot run here: {told}; {_fix(settings, facts, steps[-1])}")


def _auto(settings: Settings, facts: Facts) -> Iterator[_Outcome]:
    yield from _tensorrt(settings, facts)
    yield from _onnxruntime_cuda(settings, facts)
    yield "ONNX Runtime on the CPU", _cpu(settings, facts)


def _tensorrt(settings: Settings, facts: Facts) -> Iterator[_Outcome]:
    obstacle = _obstacle_to_cuda(facts) or _obstacle_to_tensorrt(facts)
    if obstacle:
        yield "TensorRT", obstacle
        return
    none_kept = f"{settings.plan_cache} has none for this graph"
    for name, plans, absent in (
        ("exact plan", [p for p in facts.plans if _kind(p) == "exact"], "the bundle has none"),
        ("plan for several GPUs", [p for p in facts.plans if _kind(p) == "several GPUs"], "the bundle has none"),
        ("version-compatible plan", [p for p in facts.plans if _kind(p) == "versions"], "the bundle has none"),
        ("plan on the volume", facts.cached, facts.struck.get("plan cache", none_kept)),
    ):
        yield name, _best(plans, settings, facts) if plans else absent
    yield "build", _build(settings, facts)


def _onnxruntime_cuda(settings: Settings, facts: Facts) -> Iterator[_Outcome]:
    obstacle = _obstacle_to_cuda(facts) or _obstacle_to_provider(facts) or facts.struck.get("onnxruntime-cuda")
    yield "ONNX Runtime on CUDA", obstacle or Choice("onnxruntime-cuda", f"found {facts.gpu}")


_WALKS = {"auto": _auto, "tensorrt": _tensorrt, "onnxruntime-cuda": _onnxruntime_cuda}
_FIXES = {
    "auto": "set ALLOW_CPU=1 to serve on the CPU all the same",
    "tensorrt": "set ENGINE=auto to take the next best",
    "onnxruntime-cuda": "run on a machine with an NVIDIA GPU and requirements/onnxruntime.txt, or set ENGINE=auto",
}
_INSTALL = "pip install -r requirements/cpu.txt, or run with the Python of .venv"


def _fix(settings: Settings, facts: Facts, last: Step) -> str:
    """What to change; a build is named only where it could be done."""
    if settings.engine == "auto" and "onnxruntime-cpu" in facts.struck:
        return "take a GPU with more memory"
    if settings.engine == "auto" and not facts.providers:
        return _INSTALL
    could_build = last.name == "build" and not settings.build_on_boot and "build" not in facts.struck
    return _FIXES[settings.engine] + (", or BUILD_ON_BOOT=1 to build a plan here" if could_build else "")


def _best(plans: Sequence[PlanFile], settings: Settings, facts: Facts) -> Choice | str:
    """The plan to take, or why none of `plans` will do."""
    assert facts.gpu is not None and facts.tensorrt is not None
    obstacles = [(plan, _obstacle_to_plan(plan, settings, facts)) for plan in plans]
    fitting = [plan for plan, obstacle in obstacles if obstacle is None]
    if not fitting:
        told = [f"{plan.name}: {obstacle}" for plan, obstacle in obstacles]
        more = [f"and {len(told) - _TOLD} more"] if len(told) > _TOLD else []
        return "; ".join(told[:_TOLD] + more)
    here = facts.gpu.name
    of_this_gpu = [plan for plan in fitting if plan.plan.gpu_name == here] or fitting
    longest = max(plan.plan.lengths[-1] for plan in of_this_gpu)  # what is longer than a plan's lengths fails
    best, how = _fastest([p for p in of_this_gpu if p.plan.lengths[-1] == longest], settings.max_batch_rows)
    elsewhere = "" if best.plan.gpu_name == here else f", though built on {best.plan.gpu_name or 'another GPU'}"
    return Choice("tensorrt", f"{best.name} fits {facts.gpu} and TensorRT {facts.tensorrt}{elsewhere}{how}", best)


def _fastest(plans: Sequence[PlanFile], max_rows: int) -> tuple[PlanFile, str]:
    """The plan to take among those that fit, and what that rests on beside FASTEST_FIRST.

    Latencies are compared where every plan has them, from one kind of GPU, and only at buckets that all of them have
    and of at most `max_rows` rows: by the mean of their logarithms, so that every bucket counts the same.
    """

    def rank(plan: PlanFile) -> int:
        return FASTEST_FIRST.index(plan.plan.precision)

    measured = [dict(zip(plan.plan.ladder, plan.plan.latencies_us, strict=False)) for plan in plans]
    shared = set.intersection(*(set(latencies) for latencies in measured))
    shared = {bucket for bucket in shared if bucket.batch <= max_rows} or shared
    if len(plans) == 1 or not shared or len({plan.plan.gpu_name for plan in plans}) > 1:
        return min(plans, key=rank), ""
    cost = [sum(log(latencies[bucket]) for bucket in shared) / len(shared) for latencies in measured]
    near = [plan for plan, one in zip(plans, cost, strict=True) if one <= min(cost) + log(_NOISE)]
    return min(near, key=rank), f", the fastest of {len(plans)} as measured there"


def _build(settings: Settings, facts: Facts) -> Choice | str:
    if not settings.build_on_boot:
        return "BUILD_ON_BOOT is not 1"
    if "build" in facts.struck:
        return facts.struck["build"]
    return Choice("tensorrt", f"BUILD_ON_BOOT=1, for {facts.gpu}", build=True)


def _cpu(settings: Settings, facts: Facts) -> Choice | str:
    if not facts.providers:
        return "onnxruntime is not installed"
    if "onnxruntime-cpu" in facts.struck:
        return facts.struck["onnxruntime-cpu"]
    why_not_cuda = _obstacle_to_cuda(facts) or _obstacle_to_provider(facts) or facts.struck.get("onnxruntime-cuda", "")
    asked_for = _who_asked_for_a_gpu(facts)
    if asked_for and not settings.allow_cpu:
        return f"a GPU was asked for ({asked_for}) and ALLOW_CPU is not 1"
    return Choice("onnxruntime-cpu", f"{why_not_cuda}; allowed by ALLOW_CPU=1" if asked_for else why_not_cuda)


def _who_asked_for_a_gpu(facts: Facts) -> str | None:
    """RunPod, which charges for it; or whoever installed the packages for one on a machine that shows one."""
    if facts.promised:
        return facts.promised
    if facts.tensorrt is None and "CUDAExecutionProvider" not in facts.providers:
        return None
    if facts.gpu is not None:
        return f"the packages for one are installed and {facts.gpu} is there"
    return "the packages for one are installed and /dev shows one" if facts.device_file else None


def _obstacle_to_cuda(facts: Facts) -> str | None:
    if facts.gpu is None:
        return f"no CUDA driver or no device{facts.no_gpu and ': '}{facts.no_gpu}"
    if facts.gpu.compute_capability >= _BLACKWELL:
        return (
            f"found {facts.gpu}, which needs CUDA 12.8 or newer, and TensorRT and ONNX Runtime here are built for "
            "CUDA 11.8, which ends at sm_90: choose a GPU up to H200"
        )
    return None


def _obstacle_to_tensorrt(facts: Facts) -> str | None:
    if facts.tensorrt is None:
        return "the package tensorrt is not installed"
    if facts.missing:
        return f"{' and '.join(facts.missing)} not installed"
    return None


def _obstacle_to_provider(facts: Facts) -> str | None:
    if not facts.providers:
        return "onnxruntime is not installed"
    if "CUDAExecutionProvider" not in facts.providers:
        return f"found {facts.gpu}, but the installed ONNX Runtime is the CPU build"
    return None


def _obstacle_to_plan(plan: PlanFile, settings: Settings, facts: Facts) -> str | None:
    assert facts.gpu is not None and facts.tensorrt is not None
    capability = "{}.{}".format(*facts.gpu.compute_capability)
    wrong = mismatch(plan.plan, Machine(facts.tensorrt, capability, facts.gpu.name))
    if wrong is None and plan.plan.version_compatible and plan in facts.cached:
        wrong = (
            "it is version-compatible, so that it brings code along, which is taken from the bundle alone; remove it"
        )
    if wrong is None and settings.precision not in ("auto", plan.plan.precision):
        wrong = f"it is {plan.plan.precision}, and PRECISION={settings.precision} is asked for"
    return wrong or facts.struck.get(str(plan.path))


def _kind(plan: PlanFile) -> str:
    if plan.plan.version_compatible:
        return "versions"
    return "exact" if plan.plan.hardware_compatibility == "none" else "several GPUs"
