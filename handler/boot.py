"""From settings to a worker that is ready: open, verify, select, load, warm up. What fails here says so and ends it."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from engine.bundle import open_bundle
from engine.config import Settings
from handler.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.backends.base import Engine
    from engine.batcher import Batcher
    from engine.bundle import Bundle
    from engine.select import Choice
    from handler.handler import Handler
    from handler.sdk import Sdk


@dataclass
class Worker:
    """Everything that one process serves with."""

    settings: Settings
    timeline: Timeline
    bundle: Bundle
    choice: Choice
    batcher: Batcher
    handler: Handler
    sdk: Sdk | None


def boot(settings: Settings, timeline: Timeline, *, with_sdk: bool = True) -> Worker:
    """Load the bundle and its engine, the SDK's import going on beside them.

    Raises ConfigError, BundleError or EngineError.
    """
    with timeline.stage("open"):
        bundle = open_bundle(settings.bundle)
    verified = _in_thread(lambda: _verify(bundle, timeline))
    with timeline.stage("imports"):
        # Here and not at the top: while these modules load, the files are hashed.
        from engine.backends import load_engine
        from engine.batcher import Batcher
        from engine.probe import gpu
        from engine.select import Facts, select
        from engine.tasks import load_task
        from handler.handler import Handler

        providers = _providers()
    verified.result()  # nothing of the bundle is deserialised before this line
    with timeline.stage("select"):
        choice = select(settings.engine, Facts(gpu(), providers))
    loading = _in_thread(lambda: _load(lambda: load_engine(choice, bundle, settings), timeline))
    with timeline.stage("task"):
        task = load_task(bundle, settings)
    sdk = _load_sdk(timeline) if with_sdk else None
    engine = loading.result()
    with timeline.stage("warm-up"):
        # Last and alone: beside an import the engine's spinning threads and the interpreter fight for the cores, which
        # made 10 ms into 200 on two of them.
        engine.warm_up()
    batcher = Batcher(
        engine,
        max_rows=settings.max_batch_rows,
        max_tokens=settings.max_batch_tokens,
        max_queued=settings.max_queued_rows,
    )
    handler = Handler(task, batcher, lambda: health(worker), debug=settings.debug)
    worker = Worker(settings, timeline, bundle, choice, batcher, handler, sdk)
    timeline.mark("ready")
    return worker


def _verify(bundle: Bundle, timeline: Timeline) -> None:
    with timeline.stage("verify"):
        bundle.verify()


def _providers() -> list[str]:
    if find_spec("onnxruntime") is None:
        return []  # an image for another engine
    from engine.backends.onnxruntime import available_providers

    return available_providers()


def _load(load: Callable[[], Engine], timeline: Timeline) -> Engine:
    with timeline.stage("engine load"):
        return load()


def _load_sdk(timeline: Timeline) -> Sdk:
    with timeline.stage("SDK import"):
        from handler import sdk

        return sdk.load()


class _Work(Protocol):
    def __call__(self) -> Any: ...


def _in_thread(work: _Work) -> Future[Any]:
    """Run `work` beside this thread; a daemon, so that a boot that fails elsewhere does not wait for it."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def health(worker: Worker) -> dict[str, Any]:
    """The reply to `{"input": {"health": true}}`."""
    manifest = worker.bundle.manifest
    return {
        "model": manifest.model,
        "revision": manifest.revision,
        "task": manifest.task,
        "precision": manifest.precision,
        "engine": worker.choice.engine,
        "reason": worker.choice.reason,
        "boot_ms": worker.timeline.stages,
        "uptime_s": worker.timeline.uptime_s,
        "jobs_done": worker.handler.jobs_done,
        "jobs_failed": worker.handler.jobs_failed,
        "rows_queued": worker.batcher.queued,
        **worker.batcher.stats.summary(),
        "pid": os.getpid(),
    }
