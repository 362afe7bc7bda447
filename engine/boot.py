"""From a bundle to an engine: gather facts, decide, build or load, and decide again where that failed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

from engine import probe
from engine.backends import load_engine
from engine.errors import BundleError, EngineError, EngineLost, OutOfMemory, WorkerError
from engine.plans import plan_cache
from engine.plans.sidecar import plans_of, stale
from engine.select import Choice, Facts, select
from engine.uptime import uptime_s

if TYPE_CHECKING:
    from engine.backends.base import Engine
    from engine.bundle import Bundle
    from engine.config import Settings
    from engine.plans.build_plan import Say

_BESIDE_TENSORRT = ("pycuda.driver", "cuda.bindings.driver")
"""What engine/backends/cuda.py imports."""

_MODULES = {
    "tensorrt": ("engine.backends.tensorrt", *_BESIDE_TENSORRT, "tensorrt"),
    "onnxruntime-cuda": ("engine.backends.onnxruntime_cuda",),
    "onnxruntime-cpu": ("engine.backends.onnxruntime",),
}
_PROVIDERS = {"onnxruntime-cpu": "cpu", "onnxruntime-cuda": "cuda"}

Need: TypeAlias = Callable[[Sequence[str]], None]
"""Called with files of the bundle that are opened next; returns when they may be. Raises BundleError."""


def open_engine(
    bundle: Bundle,
    settings: Settings,
    graph: str = "model",
    say: Say = lambda line: None,
    struck: dict[str, str] | None = None,
    need: Need = lambda names: None,
) -> tuple[Engine, Choice]:
    """The best engine that loads here for one graph of a bundle, not yet warmed up, and why that one.

    `say` gets a line for the log about everything that takes long or fails on the way, and `struck` what is out from
    now on, as `Facts` has it; `warmed` goes on from there. `need` is for a bundle of which `verify_common` has passed
    and no more. For a plan that the GPU has no room for only what runs on the GPU is taken, and nothing is built.
    Raises ConfigError when nothing works that the settings allow, EngineError when the engine asked for does not load,
    BundleError when the bundle failed its parity gate and the settings do not allow that.
    """
    struck = {} if struck is None else struck
    if bundle.manifest.parity_failed and not settings.allow_parity_failure:
        raise BundleError(
            f"{bundle.path} failed its parity gate ({bundle.manifest.parity_failed}); export the model again, or set "
            "ALLOW_PARITY_FAILURE=1 to serve it all the same"
        )
    facts = gather(bundle, settings, graph)
    while True:
        choice = select(settings, replace(facts, struck={**facts.struck, **struck}))
        try:
            if choice.build:
                facts = _built(bundle, settings, graph, facts, struck, say)
                continue
            if choice.plan is not None and choice.plan in facts.cached:
                plan_cache.verify(choice.plan)
            need(_opened_by(choice, bundle, graph))
            return load_engine(choice, bundle, settings, graph), choice
        except EngineError as error:
            if _ends(error, choice, settings):
                raise
            say(f"{_key(choice)}: {error}")
            struck.update(_strikes(error, choice))


def warmed(
    engine: Engine,
    choice: Choice,
    bundle: Bundle,
    settings: Settings,
    graph: str = "model",
    say: Say = lambda line: None,
    struck: dict[str, str] | None = None,
    need: Need = lambda names: None,
) -> tuple[Engine, Choice]:
    """What `open_engine` returned, warm; the next best that is, where it loads and yet does not run.

    A plan for several GPUs may load on one of them and be refused there when it is first enqueued
    (https://github.com/pytorch/TensorRT/issues/4481). Raises as `open_engine` does.
    """
    struck = {} if struck is None else struck
    while True:
        try:
            engine.warm_up()
            return engine, choice
        except EngineError as error:
            if _ends(error, choice, settings):
                raise
            strikes = _strikes(error, choice)
        engine.close()  # only now, for the error's traceback holds on to what is to be freed
        say(f"{_key(choice)}: {strikes[_key(choice)]}")
        struck.update(strikes)
        engine, choice = open_engine(bundle, settings, graph, say, struck, need)


def share_build(struck: Mapping[str, dict[str, str]]) -> None:
    """Out for one graph, out for all: a build makes the plans of every graph, and has its time limit once.

    `struck` is what `open_engine` and `warmed` struck, by graph.
    """
    for why in [one["build"] for one in struck.values() if "build" in one]:
        for one in struck.values():
            one.setdefault("build", why)


def foreseen(bundle: Bundle, settings: Settings, graph: str) -> tuple[str, list[str]]:
    """The engine that `open_engine` will probably load, and the files that it needs first.

    Nothing is decided here: what it cannot load is told by `open_engine`, and is "" here.
    """
    try:
        choice = select(settings, gather(bundle, settings, graph))
        return choice.engine, _opened_by(choice, bundle, graph)
    except WorkerError:
        return "", []


def _opened_by(choice: Choice, bundle: Bundle, graph: str) -> list[str]:
    """Those files of the bundle that the engine of `choice` opens and `verify_common` leaves out."""
    if choice.plan is not None:  # one on the volume is none of the bundle's
        return [name for name in bundle.manifest.files if bundle.path / name == choice.plan.path]
    if provider := _PROVIDERS.get(choice.engine):
        return bundle.weights_of(bundle.onnx_of(graph, provider)[0])
    if choice.engine == "fake":
        return []
    common = set(bundle.common)
    return [name for name in bundle.manifest.files if name not in common]  # nobody knows what a fork's engine opens


def import_ahead(engine: str) -> None:
    """Import what `engine` needs, for a caller that waits for something else meanwhile. Never fails."""
    for name in _MODULES.get(engine, ()):
        with suppress(Exception):
            import_module(name)


def gather(bundle: Bundle, settings: Settings, graph: str) -> Facts:
    """The facts for `select`. Imports neither TensorRT nor ONNX Runtime. Raises BundleError for a damaged sidecar."""
    gpu = probe.gpu()
    facts = Facts(
        gpu=gpu,
        no_gpu="" if gpu else probe.why_no_gpu(),
        providers=probe.onnxruntime_providers(),
        promised=probe.promised_gpu(os.environ),
        device_file=probe.has_device_file(),
        tensorrt=probe.tensorrt_version(),
        missing=probe.missing_packages(*(name.partition(".")[0] for name in _BESIDE_TENSORRT)),
    )
    if gpu is None:
        return facts  # plans are for nobody
    plans = plans_of(bundle, graph)
    struck = {str(plan.path): reason for plan in plans if (reason := stale(plan.plan, bundle))}
    if probe.missing_packages("export"):
        struck["build"] = "this image has no `export` to build with"
    try:
        cached = plan_cache.cached_plans(settings.plan_cache, bundle, graph)
    except EngineError as error:
        cached, struck["plan cache"] = [], str(error)
    return replace(facts, plans=plans, cached=cached, struck=struck)


def _key(choice: Choice) -> str:
    """What is struck when `choice` fails."""
    return "build" if choice.build else str(choice.plan.path) if choice.plan else choice.engine


def _ends(error: EngineError, choice: Choice, settings: Settings) -> bool:
    """Whether the next best would meet the same `error`, or there is none below `choice`.

    Memory that ends is met again but by what follows a plan, which may hold its weights once for each of its
    optimization profiles: another plan may have fewer, and ONNX Runtime holds them once.
    """
    if isinstance(error, OutOfMemory) and choice.plan is None:
        return True
    return isinstance(error, EngineLost) or _key(choice) in ("onnxruntime-cpu", settings.engine)


def _strikes(error: EngineError, choice: Choice) -> dict[str, str]:
    """What is out from now on, since `choice` failed with `error`, and why."""
    strikes = {_key(choice): str(error)}
    if isinstance(error, OutOfMemory) and choice.plan is not None:
        strikes["build"] = f"this GPU has no room for {choice.plan.name}, and a build takes minutes"
        strikes["onnxruntime-cpu"] = "a GPU without room is no reason to serve on the CPU"
    return strikes


def _built(bundle: Bundle, settings: Settings, graph: str, facts: Facts, struck: dict[str, str], say: Say) -> Facts:
    """`facts` with the plan that was built, or that another worker has built meanwhile. Raises EngineError.

    A plan that was struck and is built anew is no longer struck; the build is, so that there is one at most. What the
    boot has taken so far, to fetch and compare a bundle perhaps, is part of what RunPod gives it, and of the limit.
    """
    from engine.plans import build_plan  # not at the top: a boot that builds nothing need not wait for what that takes

    def now() -> Facts:
        return replace(facts, cached=plan_cache.cached_plans(settings.plan_cache, bundle, graph))

    def is_there() -> bool:
        return not select(settings, replace(now(), struck={**facts.struck, **struck})).build

    limit_s = settings.build_timeout_s
    build_plan.build(bundle, settings.plan_cache, limit_s, settings.precision, say, is_there, spent_s=uptime_s())
    for plan in now().cached:
        struck.pop(str(plan.path), None)
    if not is_there():
        raise EngineError("the plan that was built does not fit here")
    struck["build"] = "it was built a moment ago"
    return now()
