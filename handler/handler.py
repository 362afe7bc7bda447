"""handler(job): a job becomes a request, rows, outputs and a reply, or one sentence that says what went wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from engine.batcher import Batcher
from engine.errors import WorkerError
from engine.tasks.base import Json, Task
from handler.log import log
from handler.reply import body_of_error, to_json

T = TypeVar("T")

_INLINE_CHARS = 4_000
"""Below this a payload is prepared on the event loop: a hop to a thread and back costs more than the work."""
_INLINE_ROWS = 16


class Handler:
    """Answers jobs with one task on one batcher. An instance's `handle` is what RunPod calls a handler."""

    def __init__(self, task: Task, batcher: Batcher, health: Callable[[], Json], *, debug: bool = False) -> None:
        self.jobs_done = 0
        self.jobs_failed = 0
        self._task = task
        self._batcher = batcher
        self._health = health
        self._debug = debug

    async def handle(self, job: dict[str, Any]) -> Json:
        """The reply to `job`, ready for JSON; `{"error": sentence}` when it fails."""
        try:
            reply = await self._reply(job.get("input"))
        except Exception as error:  # every job that was taken gets an answer
            self.jobs_failed += 1
            if not isinstance(error, WorkerError):
                log("ERROR", f"{type(error).__name__}: {error}", job.get("id"))
            return body_of_error(error, debug=self._debug)
        self.jobs_done += 1
        return reply

    async def _reply(self, payload: Json) -> Json:
        if payload == {"health": True}:
            return to_json(self._health())
        request = self._task.parse(payload)
        rows = await _run(_is_large(payload), lambda: self._task.preprocess(request))
        outputs = await self._batcher.run(rows)
        return await _run(len(rows) > _INLINE_ROWS, lambda: to_json(self._task.postprocess(request, outputs)))


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
