"""The worker's process that listens on a load-balancing endpoint: ports, start and stop, the client of the engine's.

It opens its port beside the load of the engine: RunPod measures a cold start from the first answer of `/ping`.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import socket
from contextlib import suppress
from typing import Any

import uvloop
from aiohttp import web

from engine.config import Settings
from engine.errors import ConfigError, Overloaded, in_words
from handler.health import mark_ready, of_front
from handler.log import log
from handler.processes import signals
from handler.processes.engine_client import EngineClient
from handler.startup.timeline import Timeline
from handler.web.routes import Routes

_GRACE_S = 0.5
"""In which RunPod's balancer may send what it sends before it knows that this worker stops."""
_LAST_WORDS_S = 5.0
"""For replies that are still being sent when the drain time is over."""
_CLOSE_S = 0.1
"""For what even then is not sent; aiohttp takes it twice."""
_KEEPALIVE_S = 300.0
"""For connections that are idle, each of which holds a file; aiohttp keeps them for an hour.

Longer than proxies keep theirs (nginx 60 s, Go's HTTP client 90 s; RunPod does not say): were we to end one first, the
next request might be on its way there.
"""


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
        self._watch: asyncio.Task[None] | None = None
        self._engine = EngineClient(end, self._on_failure)
        self._routes = Routes(
            self._engine,
            self._health,
            most=settings.max_concurrency,
            timeout_s=settings.job_timeout_s,
            ping_path=settings.health_check_path,
            debug=settings.debug,
            on_refresh=self._refresh,
        )

    async def run(self) -> None:
        runners: list[web.AppRunner] = []
        try:
            runners.append(await _listen(self._routes.app(), self._settings.port, "PORT"))
            if self._settings.port_health not in (0, self._settings.port):
                runners.append(await _listen(self._routes.ping_app(), self._settings.port_health, "PORT_HEALTH"))
            await self._serve()
        finally:
            await self._drain()
            if self._watch is not None:
                self._watch.cancel()
            for runner in runners:
                await runner.cleanup()
            self._engine.close()
            signals.ignore()  # as in front.py

    async def _serve(self) -> None:
        stages = await self._engine.start()
        self._timeline.stages.update(stages)
        for signum in signals.ending_signals():
            asyncio.get_running_loop().add_signal_handler(signum, self._stop.set)
        self._watch = asyncio.create_task(self._engine.watch(self._settings.engine_timeout_s))
        gc.enable()
        gc.freeze()
        mark_ready()
        self._timeline.mark("ready to answer")
        self._routes.is_ready = True
        log("INFO", "ready", **self._engine.ready, port=self._settings.port, boot_ms=self._timeline.stages)
        try:
            await self._stop.wait()
        finally:
            self._routes.stop()

    async def _drain(self) -> None:
        """Let requests finish; after the time limit answer the rest with an error that says retry.

        The ports stay open meanwhile, and a little longer: whoever has not heard of it yet is told, and not cut off.
        """
        if self._routes.open:
            log("INFO", f"stopping; {self._routes.open} requests are still to be answered")
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s):
                if self._routes.is_stopping:  # it was ready before
                    await asyncio.sleep(_GRACE_S)
                await self._routes.idle.wait()
        self._engine.give_up(Overloaded("the worker is shutting down"))
        self._routes.give_up()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._routes.idle.wait()
        if self._routes.open:
            log("WARN", f"{self._routes.open} clients have not read their replies to the end")

    async def _health(self) -> dict[str, Any]:
        report = await self._engine.health()
        running, counts = self._routes.running, self._routes.counts.report()
        return {**report, **of_front(counts, self._timeline.stages, running, report["engine_pid"])}

    def _refresh(self) -> None:
        if not self._stop.is_set():
            log(
                "INFO",
                "an answer asks for a fresh worker (refresh_worker); no more requests are taken, the worker exits",
            )
            self._stop.set()

    def _on_failure(self, sentence: str) -> None:
        self.failed = sentence
        self._routes.stop()
        log("ERROR", f"{sentence}; no more requests are taken and the worker exits")
        self._stop.set()


class _Lines(logging.Handler):
    """What aiohttp's server has to tell, such as of bytes that are no HTTP, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        said = f": {' '.join(in_words(error).split())}" if error is not None else ""
        log("ERROR" if record.levelno >= logging.ERROR else "WARN", record.getMessage() + said)


def _logger() -> logging.Logger:
    logger = logging.Logger("http", logging.WARNING)
    logger.addHandler(_Lines())
    return logger


async def _listen(app: web.Application, port: int, name: str) -> web.AppRunner:
    """Listen on `port` of every interface. Raises ConfigError."""
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_logger(),
        handler_cancellation=True,  # what nobody waits for any more takes no engine's time
        auto_decompress=False,  # such bodies are refused, and aiohttp would begin before
        keepalive_timeout=_KEEPALIVE_S,
        shutdown_timeout=_CLOSE_S,
    )
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
