"""The worker's process that talks to RunPod: the job loop, the heartbeat, and the client of the engine's process."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import partial
from typing import Any

import uvloop

from engine.config import Settings
from engine.daemon import in_daemon
from handler.health import mark_ready, of_front
from handler.job_loop import JobLoop
from handler.log import log
from handler.options import asks, is_health
from handler.processes import signals
from handler.processes.engine_client import EngineClient
from handler.protocol import sdk as sdk_module
from handler.protocol.heartbeat import Heartbeat
from handler.protocol.sdk import Sdk
from handler.reply import encode
from handler.startup.timeline import Timeline

_HEARTBEAT_DELAY_S = 0.5  # its imports take a tenth of a second of the interpreter: let a waiting job go first
_HEARTBEAT_AGAIN_S = 10.0
_REPORT_S = 10.0


def serve_jobs(sdk: Sdk, settings: Settings, timeline: Timeline, end: socket.socket) -> int:
    """Serve until a signal stops it; the exit code, 1 when the engine failed meanwhile.

    Raises WorkerFault when the engine cannot start.
    """
    front = _Front(settings, timeline, sdk, end)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(front.run())
    return 1 if front.failed else 0


class _Front:
    def __init__(self, settings: Settings, timeline: Timeline, sdk: Sdk, end: socket.socket) -> None:
        self.failed: str | None = None
        self.engine = EngineClient(end, self._on_failure)
        self._settings = settings
        self._timeline = timeline
        self._sdk = sdk
        self._heartbeat = Heartbeat(os.environ)
        self._watch: asyncio.Task[None] | None = None
        self._health_jobs = 0
        self._loop = JobLoop(
            sdk,
            self.handle,
            concurrency=settings.max_concurrency,
            drain_timeout_s=settings.drain_timeout_s,
            result_timeout_s=settings.result_timeout_s,
            job_timeout_s=settings.job_timeout_s,
            debug=settings.debug,
            on_first_take=self._on_first_take,
        )

    async def run(self) -> None:
        try:
            await self._loop.run(ready=self._start_engine())
        finally:
            if self._watch is not None:
                self._watch.cancel()
            self.engine.close()
            signals.ignore()  # uvloop leaves that as it is; to remove its handlers first would let a signal kill
        if self.failed:
            _report_unhealthy(self._heartbeat, self.failed)

    async def _start_engine(self) -> None:
        self._timeline.stages.update(await self.engine.start())
        self._watch = asyncio.create_task(self.engine.watch(self._settings.engine_timeout_s))

    async def handle(self, job: dict[str, Any]) -> bytes | AsyncGenerator[bytes, None]:
        """The body for `job`, or its parts; health also tells what only this process knows."""
        if asks(job, "stream"):
            return self.engine.stream(job)
        if not is_health(job):
            return await self.engine.handle(
                job, partial(self._loop.report, job["id"]) if asks(job, "progress") else None
            )
        self._health_jobs += 1
        try:
            return encode({"output": await self._health()})
        finally:
            self._health_jobs -= 1

    async def _health(self) -> dict[str, Any]:
        report = await self.engine.health()
        running = self._sdk.progress.get_job_count() - self._health_jobs
        counts = self._loop.counts.report()
        return {**report, **of_front(counts, self._timeline.stages, running, report["engine_pid"])}

    def _on_first_take(self) -> None:
        self._timeline.mark("first take")
        gc.enable()
        gc.freeze()  # as in the engine's process
        mark_ready()
        self._sdk.progress.set_mirror(self._heartbeat)
        asyncio.get_running_loop().call_later(_HEARTBEAT_DELAY_S, self._start_heartbeat)
        log("INFO", "ready", **self.engine.ready, boot_ms=self._timeline.stages)

    def _start_heartbeat(self) -> None:
        if not (self.failed or self._heartbeat.start()):  # a ping would say that all is well
            asyncio.get_running_loop().call_later(_HEARTBEAT_AGAIN_S, self._start_heartbeat)

    def _on_failure(self, sentence: str) -> None:
        self.failed = sentence
        log("ERROR", f"{sentence}; no more jobs are taken and the worker exits")
        self._loop.stop()


def _report_unhealthy(heartbeat: Heartbeat, sentence: str) -> None:
    """Best effort, and not for long: the SDK limits each step of it, not the whole, and the worker has to end."""

    def report() -> None:
        heartbeat.stop()  # a ping behind the report would say that all is well
        sdk_module.report_unhealthy("engine", sentence)

    with suppress(RuntimeError, TimeoutError):  # the first: no further thread
        in_daemon(report, "report").result(_REPORT_S)
