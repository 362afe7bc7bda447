"""From settings to an engine that is ready: open, verify, select, load, warm up. What fails says why and ends it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from engine.bundle import open_bundle
from engine.config import Settings
from engine.errors import BundleError
from engine.probe import has_device_file
from handler.counts import Counts
from handler.log import log
from handler.startup.beside import Beside
from handler.startup.frugal import be_frugal
from handler.startup.timeline import Timeline
from handler.startup.verification import Verification

if TYPE_CHECKING:
    from engine.backends.base import Engine
    from engine.batching.passage import Passage
    from engine.batching.router import Router
    from engine.batching.stats import Stats
    from engine.bundle import Bundle
    from engine.select import Choice
    from engine.tasks.base import Task
    from handler.handler import Handler
    from handler.startup.fetch_bundle import Copy

T = TypeVar("T")

_OPENING = 10  # times as long as the load of the engines may it take to open lanes: the CPUs have other work by then


@dataclass
class Worker:
    """Everything that the process with the engine serves with."""

    timeline: Timeline
    bundle: Bundle
    choices: Mapping[str, Choice]
    """By graph, in the order of the manifest."""
    batcher: Router | Passage
    handler: Handler
    notes: Sequence[str] = ()
    """What the engine does not do as it should."""
    counts: Counts = field(default_factory=Counts)
    """Of the stock loop's jobs; others are counted by the process that answers them."""

    @property
    def choice(self) -> Choice:
        """That of the first graph; the others' are in the health reply."""
        return next(iter(self.choices.values()))

    def health(self) -> dict[str, Any]:
        """The reply to `{"input": {"health": true}}`."""
        manifest = self.bundle.manifest
        return {
            "model": manifest.model,
            "revision": manifest.revision,
            "task": manifest.task,
            "precision": manifest.precision,
            **_report(self.choice),
            **(
                {"graphs": {name: _report(choice) for name, choice in self.choices.items()}}
                if len(self.choices) > 1
                else {}
            ),
            "notes": list(self.notes),
            "boot_ms": self.timeline.stages,
            "uptime_s": self.timeline.uptime_s,
            **self.counts.report(),
            "rows_queued": self.batcher.queued,
            **self.batcher.stats.summary(),
            "engine_pid": os.getpid(),
        }


def boot(settings: Settings, timeline: Timeline, *, on_loops: bool = True) -> Worker:
    """Load the bundle and its engine; `on_loops` as of a Batcher. Raises ConfigError, BundleError or EngineError."""
    with timeline.stage("open"):
        bundle, folder, copy = _opened(settings)
    verification = Verification(bundle)
    verification.ask(_probable_weights(bundle, settings))
    with timeline.stage("imports"):
        # Here and not at the top: while these modules load, the files are hashed and the driver starts.
        be_frugal()
        if bundle.manifest.graphs and settings.engine not in ("fake", "onnxruntime-cpu"):
            from engine.plans.kernel_cache import keep_kernels
            from engine.probe import load_kernels_lazily, wake_gpu

            load_kernels_lazily()
            if settings.engine != "tensorrt":
                keep_kernels(settings.plan_cache)
            if not settings.build_on_boot:  # or a plan may be built, by another process that may want the whole device
                Beside(wake_gpu)
        from engine.boot import foreseen, import_ahead, open_engine, share_build, warmed
        from engine.select import Choice

        _verified(verification.wait, folder, copy)  # nothing but the manifest is parsed before this line
        ahead = [foreseen(bundle, settings, graph) for graph in bundle.manifest.graphs]
        for _, files in ahead:
            verification.ask(files)
        for name, _ in ahead:
            import_ahead(name)
    if verification.delays:
        _import_serving()
    choices, engines = {}, {}
    struck: dict[str, dict[str, str]] = {graph: {} for graph in bundle.manifest.graphs}
    try:
        with timeline.stage("engine load"):
            for graph in bundle.manifest.graphs:
                asked = (bundle, settings, graph, _info, struck[graph], verification.need)
                engines[graph], choices[graph] = open_engine(*asked)
                share_build(struck)
        if not choices:
            choices[bundle.manifest.task] = Choice("none", f"{bundle.manifest.task} has no model")
        # Not earlier: ONNX Runtime holds the interpreter lock while it loads a graph, but not while it runs one.
        loading = Beside(lambda: _load_task(bundle, settings, timeline))
        with timeline.stage("warm-up"):
            for graph, engine in engines.items():
                asked = (bundle, settings, graph, _info, struck[graph], verification.need)
                engines[graph], choices[graph] = warmed(engine, choices[graph], *asked)
                share_build(struck)
        task = loading.result()
    except Exception:
        _verified(verification.result, folder, copy)  # damaged weights say more than what followed from them
        raise
    timeline.stages["verify"] = _verified(verification.result, folder, copy)
    notes = [note for engine in engines.values() for note in engine.notes]
    notes += _without_lanes(engines, timeline, settings)
    for line in (*_lines(choices), *notes):
        _info(line)
    stats, batcher = _batching(settings, engines, on_loops)
    from handler.handler import Handler

    handler = Handler(task, batcher, lambda: worker.health(), debug=settings.debug, stats=stats)
    worker = Worker(timeline, bundle, choices, batcher, handler, notes)
    timeline.mark("ready")
    return worker


def _opened(settings: Settings) -> tuple[Bundle, Path, Copy | None]:
    """The bundle, its folder, and which copy it is where it was fetched."""
    folder, copy = settings.bundle, None
    if settings.bundle_url or settings.bundle_repo:
        from handler.startup.bundle_source import bundle_folder

        folder = bundle_folder(settings)
    if settings.bundle_url:
        from handler.startup.fetch_bundle import copy_in

        copy = copy_in(folder)
    return open_bundle(folder, sha256=settings.bundle_sha256, public_key=settings.bundle_public_key), folder, copy


def _without_lanes(engines: Mapping[str, Engine], timeline: Timeline, settings: Settings) -> list[str]:
    """Leave out lanes where opening them may take so long, by the interpreter's lock, that the worker seems to hang."""
    load_ms = timeline.stages["engine load"] + timeline.stages["warm-up"]  # where another engine may have been loaded
    opening_s = _OPENING * load_ms / 1e3
    if opening_s <= settings.engine_timeout_s or not any(engine.lanes for engine in engines.values()):
        return []
    for engine in engines.values():
        engine.lanes = 0
    return [
        f"batches run one after the other: to open lanes may take {opening_s:.0f} s, "
        f"longer than ENGINE_TIMEOUT_S={settings.engine_timeout_s:g}; raise that to have them"
    ]


def _batching(settings: Settings, engines: Mapping[str, Engine], on_loops: bool) -> tuple[Stats, Router | Passage]:
    """What makes batches for each graph's engine, and counts them."""
    from engine.batching.batcher import Batcher
    from engine.batching.passage import Passage
    from engine.batching.router import Router
    from engine.batching.stats import Stats

    stats = Stats()
    batchers = {
        graph: Batcher(
            engine,
            max_rows=settings.max_batch_rows,
            max_tokens=settings.max_batch_tokens,
            max_queued=settings.max_queued_rows,
            max_delay_s=settings.max_queue_delay_ms / 1e3,
            on_loops=on_loops,
            stats=stats,
            say=_info,
        )
        for graph, engine in engines.items()
    }
    return stats, Router(batchers, stats) if batchers else Passage(stats)


def _probable_weights(bundle: Bundle, settings: Settings) -> list[str]:
    """Those that the CPU takes, where no GPU is to be seen: known before there is anything to decide with.

    By their names, for no graph was compared yet: in its place there may be a pipe, which would be waited for.
    """
    if settings.engine not in ("auto", "onnxruntime-cpu") or has_device_file():
        return []
    found = []
    for name, graph in bundle.manifest.graphs.items():
        if graph.onnx:
            path = PurePosixPath(bundle.onnx_of(name, "cpu")[0])
            beside = (str(path.with_suffix(".bin")), str(path.with_name("weights.bin")))
            found += [file for file in beside if file in bundle.manifest.files][:1]
    return found


def _verified(wait: Callable[[], T], folder: Path, copy: Copy | None) -> T:
    """What `wait` returns. Raises BundleError as it does; a bundle that was fetched, `copy`, is then discarded."""
    try:
        return wait()
    except BundleError as error:
        if not copy:
            raise
        from handler.startup.fetch_bundle import discard

        try:
            is_removed = discard(folder, copy)  # or every worker would find it in the cache, and fail
        except (OSError, BundleError) as refusal:
            why = getattr(refusal, "strerror", refusal)
            raise BundleError(f"{error}; it cannot be removed from the cache ({why})") from error
        if not is_removed:
            raise BundleError(f"{error}; another worker has removed it from the cache meanwhile") from error
        raise BundleError(f"{error}; it was removed from the cache, and the next worker fetches it again") from error


def _info(line: str) -> None:
    log("INFO", line)


def _report(choice: Choice) -> dict[str, Any]:
    return {"engine": choice.engine, "reason": choice.reason, "ladder": choice.report()}


def _lines(choices: Mapping[str, Choice]) -> Iterator[str]:
    for graph, choice in choices.items():
        whose = f"{graph}: " if len(choices) > 1 else ""
        yield from (f"{whose}{step.name}: {step.reason}" for step in choice.ladder)


def _import_serving() -> None:
    """What is of no use before an engine is there."""
    import handler.handler
    import handler.processes.engine_server  # noqa: F401 - for the modules, not the name
    from handler.startup import shells

    shells.tie()


def _load_task(bundle: Bundle, settings: Settings, timeline: Timeline) -> Task:
    _import_serving()
    from engine.tasks import task_class
    from handler.records import show_records

    with timeline.stage("task"):
        kind = task_class(bundle.manifest.task)
        show_records()  # not earlier: what a task's file says of `logging` when it is imported holds
        return kind.from_bundle(bundle, settings)
