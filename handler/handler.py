"""handler(job): a job becomes a request, rows, outputs and a reply, or one sentence that says what went wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from engine.batcher import Batcher
from engine.errors import InvalidInput, WorkerError
from engine.stats import Stats
from engine.tasks.base import Json, Task
from handler.log import log
from handler.reply import body_of_error, body_of_json, encode, to_json

T = TypeVar("T")

_INLINE_CHARS = 4_000
"""Below this a payload is prepared on the event loop: a hop to a thread and back costs more than the work."""
_INLINE_ROWS = 16


class Handler:
    """Answers jobs with one task on one batcher."""

    def __init__(
        self,
        task: Task,
        batcher: Batcher,
        health: Callable[[], Json],
        *,
        debug: bool = False,
        stats: Stats | None = None,
    ) -> None:
        self.jobs_done = 0
        self.jobs_failed = 0
        self._task = task
        self._batcher = batcher
        self._health = health
        self._debug = debug
        self._stats = stats or Stats()

    async def handle(self, job: dict[str, Any]) -> Json:
        """The reply to `job`, ready for any JSON writer; `{"error": sentence}` when it fails.

        This is what the stock SDK calls a handler.
        """
        return await self._guarded(job, to_json)

    async def body(self, job: dict[str, Any]) -> bytes:
        """The body to post for `job`: what `handle` returns, encoded here rather than by whoever posts it."""
        body: bytes = await self._guarded(job, lambda reply: encode(body_of_json(reply)))
        return body if isinstance(body, bytes) else encode(body)

    async def _guarded(self, job: dict[str, Any], finish: Callable[[Json], Any]) -> Any:
        try:
            reply = await self._reply(job.get("input"), finish)
        except Exception as error:  # every job that was taken gets an answer
            self.jobs_failed += 1
            if not isinstance(error, WorkerError):
                log("ERROR", f"{type(error).__name__}: {error}", job.get("id"))
            return body_of_error(error, debug=self._debug)
        self.jobs_done += 1
        return reply

    async def _reply(self, payload: Json, finish: Callable[[Json], Any]) -> Any:
        if payload == {"health": True}:
            return finish(self._health())
        payload, timed = _without_timings(payload)
        clock = _Clock(self._stats)
        request = self._task.parse(payload)
        rows = await _run(_is_large(payload), lambda: self._task.preprocess(request))
        clock.lap("prepare")
        outputs = await self._batcher.run(rows)
        clock.lap("engine")

        def conclude() -> Any:
            reply = self._task.postprocess(request, outputs)
            if timed and isinstance(reply, dict):
                reply["timings_ms"] = clock.laps_ms
            return finish(reply)

        result = await _run(len(rows) > _INLINE_ROWS, conclude)
        clock.lap("finish")
        return result


class _Clock:
    """Times the stages of one job: prepare (parse, tokenise), engine (wait and run), finish (postprocess, encode)."""

    def __init__(self, stats: Stats) -> None:
        self.laps_ms: dict[str, float] = {}
        self._stats = stats
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._stats.stage(name, now - self._last)
        self.laps_ms[name] = round((now - self._last) * 1e3, 3)
        self._last = now


def _without_timings(payload: Json) -> tuple[Json, bool]:
    """`timings` is for every task, so no task knows it."""
    if not isinstance(payload, dict) or "timings" not in payload:
        return payload, False
    rest = dict(payload)
    timed = rest.pop("timings")
    if not isinstance(timed, bool):
        raise InvalidInput("`timings` must be true or false")
    return rest, timed


async def _run(in_thread: bool, work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work) if in_thread else work()


def _is_large(payload: Json) -> bool:
    """Whether the strings in `payload` hold more than _INLINE_CHARS characters; looks no further than it must."""
    budget, pending = _INLINE_CHARS, [payload]
    while pending and budget >= 0:
        value = pending.pop()
        budget -= len(value) if isinstance(value, str) else 1
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value[: _INLINE_CHARS + 1])
    return budget < 0
