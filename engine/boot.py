"""From a bundle to an engine: gather facts, decide, build or load, and decide again where that failed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from engine import plan_cache, probe
from engine.backends import load_engine
from engine.errors import BundleError, EngineError, EngineLost, OutOfMemory
from engine.plan import plans_of, stale
from engine.select import Choice, Facts, select

if TYPE_CHECKING:
    from engine.backends.base import Engine
    from engine.bundle import Bundle
    from engine.config import Settings

_BESIDE_TENSORRT = ("pycuda.driver", "cuda.bindings.driver")
"""What engine/backends/cuda.py imports."""


def open_engine(
    bundle: Bundle, settings: Settings, graph: str = "model", say: plan_cache.Say = lambda line: None
) -> tuple[Engine, Choice]:
    """The best engine that works here for one graph of a verified bundle, not yet warmed up, and why that one.

    `say` gets a line for the log about everything that takes long or fails on the way. Raises ConfigError when nothing
    works that the settings allow, EngineError when the engine asked for does not load, BundleError when the bundle
    failed its parity gate and the settings do not allow that.
    """
    if bundle.manifest.parity_failed and not settings.allow_parity_failure:
        raise BundleError(
            f"{bundle.path} failed its parity gate ({bundle.manifest.parity_failed}); export the model again, or set "
            "ALLOW_PARITY_FAILURE=1 to serve it all the same"
        )
    facts = gather(bundle, settings, graph)
    while True:
        choice = select(settings, facts)
        try:
            if choice.build:
                facts = _built(bundle, settings, graph, facts, say)
                continue
            if choice.plan is not None and choice.plan in facts.cached:
                plan_cache.verify(choice.plan)
            return load_engine(choice, bundle, settings, graph), choice
        except (EngineLost, OutOfMemory):
            raise  # the next best would meet the same
        except EngineError as error:
            key = "build" if choice.build else str(choice.plan.path) if choice.plan else choice.engine
            if key in ("onnxruntime-cpu", "fake", settings.engine):
                raise  # there is nothing below it
            say(f"{key}: {error}")
            facts = replace(facts, struck={**facts.struck, key: str(error)})


def import_ahead(settings: Settings) -> None:
    """Import what `open_engine` will probably come to, for a caller that waits for something else meanwhile.

    Nothing is decided here, and what does not load is told by `open_engine`.
    """
    if settings.engine == "fake":
        return
    names = ["engine.backends.onnxruntime"]
    if settings.engine in ("auto", "tensorrt") and probe.gpu() is not None and probe.tensorrt_version():
        names = ["engine.backends.tensorrt", *_BESIDE_TENSORRT, "tensorrt"]
    for name in names:
        with suppress(Exception):
            import_module(name)


def gather(bundle: Bundle, settings: Settings, graph: str) -> Facts:
    """The facts for `select`. Imports neither TensorRT nor ONNX Runtime. Raises BundleError for a damaged sidecar."""
    gpu = probe.gpu()
    facts = Facts(
        gpu=gpu,
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
    cached = plan_cache.cached_plans(settings.plan_cache, bundle, graph)
    return replace(facts, plans=plans, cached=cached, struck=struck)


def _built(bundle: Bundle, settings: Settings, graph: str, facts: Facts, say: Callable[[str], None]) -> Facts:
    """`facts` with the plan that was built, or that another worker has built meanwhile. Raises EngineError."""

    def now() -> Facts:
        return replace(facts, cached=plan_cache.cached_plans(settings.plan_cache, bundle, graph))

    def is_there() -> bool:
        return not select(settings, now()).build

    plan_cache.build(bundle, settings.plan_cache, settings.build_timeout_s, say, is_there)
    if not is_there():
        raise EngineError("the plan that was built does not fit here")
    return now()
