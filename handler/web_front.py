"""The worker's process that listens on a load-balancing endpoint: ports, start and stop, the client of the engine's.

Its port is open before the engine is loaded: RunPod measures a cold start from the first answer of `/ping`.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
from contextlib import suppress
from typing import Any

import uvloop
from aiohttp import web

from engine.config import Settings
from engine.errors import ConfigError, Overloaded
from handler import signals
from handler.engine_client import EngineClient
from handler.health import mark_ready, resident_mb
from handler.log import log
from handler.timeline import Timeline
from handler.web import Routes

_LAST_WORDS_S = 5.0
"""For replies that are still being sent when the drain time is over."""


def serve_web(settings: Settings, timeline: Timeline, end: socket.socket) -> int:
    """Serve until a signal stops it; the exit code, 1 when the engine failed meanwhile.

    Raises WorkerFault when the engine cannot start, or a port cannot be had.
    """
    front = _WebFront(settings, timeline, end)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(front.run())
    return 1 if front.failed else 0


class _WebFront:
    def __init__(self, settings: Settings, timeline: Timeline, end: socket.socket) -> None:
        self.failed: str | None = None
        self._settings = settings
        self._timeline = timeline
        self._stop = asyncio.Event()
        self._engine = EngineClient(end, self._on_failure)
        self._routes = Routes(
            self._engine,
            self._health,
            most=settings.max_concurrency,
            timeout_s=settings.job_timeout_s,
            debug=settings.debug,
        )

    async def run(self) -> None:
        runners = []
        try:
            runners.append(await _listen(self._routes.app(), self._settings.port, "PORT"))
            if self._settings.port_health not in (0, self._settings.port):
                runners.append(await _listen(self._routes.ping_app(), self._settings.port_health, "PORT_HEALTH"))
            await self._serve()
        finally:
            for runner in runners:
                for site in list(runner.sites):
                    await site.stop()
            await self._drain()
            for runner in runners:
                await runner.cleanup()
            self._engine.close()
            signals.ignore()  # as in front.py

    async def _serve(self) -> None:
        stages = await self._engine.start()
        self._timeline.stages.update(stages)
        for signum in signals.ending_signals():
            asyncio.get_running_loop().add_signal_handler(signum, self._stop.set)
        watch = asyncio.create_task(self._engine.watch(self._settings.engine_timeout_s))
        gc.enable()
        gc.freeze()
        mark_ready()
        self._timeline.mark("ready to answer")
        self._routes.is_ready = True
        log("INFO", "ready", **self._engine.ready, port=self._settings.port, boot_ms=self._timeline.stages)
        try:
            await self._stop.wait()
        finally:
            self._end_service()
            watch.cancel()

    def _end_service(self) -> None:
        self._routes.is_ready, self._routes.is_stopping = False, True

    async def _drain(self) -> None:
        """Let requests finish; after the time limit answer the rest with an error that says retry."""
        if self._routes.open:
            log("INFO", f"stopping; {self._routes.open} requests are still to be answered")
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._routes.idle.wait()
        self._engine.give_up(Overloaded("the worker is shutting down"))

    async def _health(self) -> dict[str, Any]:
        report = await self._engine.health()
        memory = {name: resident_mb(pid) for name, pid in (("front", os.getpid()), ("engine", report["engine_pid"]))}
        return {
            **report,
            **self._routes.counts.report(),
            "boot_ms": self._timeline.stages,
            "jobs_running": self._routes.running,
            "memory_mb": memory,
            "pid": os.getpid(),
        }

    def _on_failure(self, sentence: str) -> None:
        self.failed = sentence
        self._end_service()
        log("ERROR", f"{sentence}; no more requests are taken and the worker exits")
        self._stop.set()


async def _listen(app: web.Application, port: int, name: str) -> web.AppRunner:
    """Listen on `port` of every interface. Raises ConfigError."""
    # handler_cancellation: what nobody waits for any more takes no engine's time.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_LAST_WORDS_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, None, port, backlog=1024).start()
    except OSError as error:
        with suppress(Exception):
            await runner.cleanup()
        why = {errno.EADDRINUSE: "another process listens there", errno.EACCES: "this user may not"}
        raise ConfigError(
            f"{name}={port}: the worker cannot listen on that port ({why.get(error.errno or 0, error.strerror)}); set "
            f"{name} to a free one from 1024 on, and expose that one"
        ) from error
    return runner
