"""The worker's side of the engine's process: hands jobs over, passes cancellations on, notices death and hanging."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from engine.errors import ConfigError, EngineError, InvalidInput, WorkerError, WorkerFault
from handler.collector import look_when_idle
from handler.processes.frames import Frames, open_frames

CHECKS_PER_TIMEOUT = 4


def batch_too_long(running: str, timeout_s: float) -> str:
    """What is said of an engine that hangs, or is too slow, at a batch of `running`."""
    return (
        f"the engine did not end a batch of {running} within {timeout_s:g} s (ENGINE_TIMEOUT_S); "
        "raise that where this machine needs longer for it"
    )


class EngineClient:
    """Answers jobs through the process at the other end of `end`.

    `on_failure` is called once, with a sentence, when that process ends or hangs; every job that it held then fails.
    """

    def __init__(self, end: socket.socket, on_failure: Callable[[str], None]) -> None:
        self.ready: dict[str, Any] = {}
        """What the engine's process said when it was ready: engine, reason."""
        self._end = end
        self._on_failure = on_failure
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._on_part: dict[int, Callable[[Any], None]] = {}
        self._started: asyncio.Future[dict[str, float]]
        self._frames: Frames | None = None
        self._closing = False
        self._failure: str | None = None
        self._last_sign = 0.0
        self._busy_s = 0.0
        self._running = ""

    async def start(self) -> dict[str, float]:
        """Wait until the engine is ready; its boot stages in ms. Raises WorkerFault with the reason when it is not."""
        self._started = asyncio.get_running_loop().create_future()
        self._frames = await open_frames(self._end, self._on_frame, self._on_end)
        return await self._started

    async def handle(self, job: dict[str, Any], on_progress: Callable[[Any], None] | None = None) -> bytes:
        """The body to post for `job`; `on_progress` is told how far it is, where the job asks for that.

        `job` loses its input, which may be large. Raises EngineError when the engine's process fails while it holds
        the job.
        """
        body: bytes = await self._ask("job", job, on_progress)
        return body

    async def stream(self, job: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """The bodies of a streamed job's parts, as they come, then its final body.

        `job` loses its input. Raises as `handle` does.
        """
        parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        number = next(self._numbers)
        asked = asyncio.ensure_future(self._ask("job", job, parts.put_nowait, number))
        asked.add_done_callback(lambda _: parts.put_nowait(None))
        try:
            while (part := await parts.get()) is not None:
                yield part
                self._send("room", number, None)
            yield await asked
        finally:
            asked.cancel()

    async def health(self) -> dict[str, Any]:
        """What the engine's process reports of itself."""
        report: dict[str, Any] = await self._ask("health", None)
        return report

    def _send(self, kind: str, number: int, content: Any) -> None:
        assert self._frames is not None, "start() first"
        self._frames.send(kind, number, content)

    async def _ask(
        self, kind: str, content: Any, on_part: Callable[[Any], None] | None = None, number: int | None = None
    ) -> Any:
        if self._failure:  # a job that was handed over while we noticed
            raise EngineError(self._failure)
        number = next(self._numbers) if number is None else number
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        if on_part is not None:
            self._on_part[number] = on_part
        try:
            self._send(kind, number, content)
            if kind == "job":
                content.pop("input", None)  # whoever waits holds the job, and the engine's process has it now
            return await future
        except ValueError as error:
            raise InvalidInput("the job is nested too deeply") from error
        except asyncio.CancelledError:
            self._send("cancel", number, None)
            raise
        finally:
            del self._waiting[number]
            self._on_part.pop(number, None)
            if not self._waiting:
                look_when_idle(lambda: not self._waiting)

    def _on_frame(self, kind: str, *content: Any) -> None:
        self._last_sign = time.monotonic()  # not a pong's alone, which waits behind jobs that take seconds to read
        if kind == "ready":
            self.ready, stages = content
            self._started.set_result(stages)
        elif kind == "failed":
            self._started.set_exception(ConfigError(content[0]))
        elif kind == "lost":
            self._fail(content[1])
        elif kind == "pong":
            _, self._busy_s, self._running = content
        elif kind in ("chunk", "progress"):
            if on_part := self._on_part.get(content[0]):
                on_part(content[1])
        elif (future := self._waiting.get(content[0])) and not future.done():
            future.set_result(content[1])

    def _on_end(self) -> None:
        if not self._closing:
            self._fail("the engine's process ended unexpectedly")

    def _fail(self, sentence: str) -> None:
        if self._failure:
            return
        self._failure = sentence
        if not self._started.done():
            self._started.set_exception(WorkerFault(sentence))
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(EngineError(sentence))
        self._on_failure(sentence)

    def give_up(self, error: WorkerError) -> None:
        """Let every job that still waits fail with `error`."""
        for number, future in self._waiting.items():
            if not future.done():
                future.set_exception(error)
                self._send("cancel", number, None)

    async def watch(self, timeout_s: float) -> None:
        """Fail when one batch runs for longer than `timeout_s`, or the process does not even say how long.

        A time for which this process stood still as well does not count: workers are frozen while nothing runs, and the
        clock goes on.
        """
        pause, awake_since = timeout_s / CHECKS_PER_TIMEOUT, 0.0
        seen = self._last_sign = time.monotonic()
        while True:
            is_asked = bool(self._waiting) and not self._failure
            if is_asked:
                self._send("ping", 0, None)
            await asyncio.sleep(pause)
            now = time.monotonic()
            if now - seen > 2 * pause:  # also where no job was there yet, or between two lines
                self._last_sign = awake_since = now
            elif not is_asked:
                self._last_sign, self._busy_s = now, 0.0
            elif now - self._last_sign > timeout_s:
                self._fail(f"the engine did not answer within {timeout_s:g} s (ENGINE_TIMEOUT_S)")
            elif min(self._busy_s, now - awake_since) > timeout_s:
                self._fail(batch_too_long(self._running, timeout_s))
            seen = now

    def close(self) -> None:
        """Close the connection; the engine's process ends when it notices."""
        self._closing = True
        if self._frames is not None:
            self._frames.close()
