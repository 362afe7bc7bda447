"""The worker's handler as RunPod's own loop and its local modes call it: a function of a job, for all of them alike.

They stream from generator functions only, and then every job. So a streamed job's parts are one reply here.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import orjson

from engine.config import Settings
from engine.errors import EngineError, InvalidInput
from engine.sizes import LARGEST_REPLY
from engine.tasks import payload as check
from handler.counts import Counts
from handler.handler import Handler
from handler.options import asks, is_health
from handler.processes.engine_client import CHECKS_PER_TIMEOUT, batch_too_long
from handler.protocol.take_body import UNREADABLE
from handler.reply import body_of_error, too_late

if TYPE_CHECKING:
    from engine.batching.batcher import Batcher
    from engine.batching.passage import Passage
    from engine.batching.router import Router


class Watch:
    """Notices a batch that runs for longer than `timeout_s`, as EngineClient does where there are two processes.

    The jobs that run then fail; `end` is called in the watch's thread, with a sentence.
    """

    def __init__(self, timeout_s: float, end: Callable[[str], None]) -> None:
        self._timeout_s = timeout_s
        self._end = end
        self._running: set[asyncio.Task[Any]] = set()
        self._sentence = ""

    def start(self, batcher: Batcher | Router | Passage) -> None:
        """Watch `batcher` from now on, in a thread that keeps no process alive."""
        threading.Thread(target=self._watch, args=(batcher,), name="watch", daemon=True).start()

    async def guard(self, job: Coroutine[Any, Any, Any]) -> Any:
        """What `job` gives, or an error when the engine hangs meanwhile, or did before. Each has a task of its own."""
        task = asyncio.current_task()
        assert task is not None, "jobs are tasks"
        self._running.add(task)
        try:
            if self._sentence:  # the SDK takes jobs until the process ends
                job.close()
                return body_of_error(EngineError(self._sentence))
            return await job
        except asyncio.CancelledError:
            if not self._sentence:
                raise
            task.uncancel()
            return body_of_error(EngineError(self._sentence))
        finally:
            self._running.discard(task)

    def _watch(self, batcher: Batcher | Router | Passage) -> None:
        pause, awake_since, seen = self._timeout_s / CHECKS_PER_TIMEOUT, 0.0, time.monotonic()
        while True:
            time.sleep(pause)
            busy_s, now = batcher.busy_s, time.monotonic()  # in this order: a stop between the two is noticed as well
            if now - seen > 2 * pause:  # this process stood still, engine and all
                awake_since = now
            elif min(busy_s, now - awake_since) > self._timeout_s:
                break
            seen = now
        self._sentence = batch_too_long(batcher.running, self._timeout_s)
        for task in list(self._running):  # a copy in one step, which no other thread comes between
            task.get_loop().call_soon_threadsafe(self._give_up, task)
        self._end(self._sentence)

    def _give_up(self, task: asyncio.Task[Any]) -> None:
        if task in self._running:  # else it ended meanwhile, and what it has is being sent
            task.cancel()


def answers(
    handler: Handler, settings: Settings, counts: Counts, watch: Watch | None = None
) -> Callable[[dict[str, Any]], Coroutine[Any, Any, Any]]:
    """`handler` as the SDK calls it, with the time limits of a job and of the engine; `counts` learns how it ended."""

    async def answer(job: dict[str, Any]) -> Any:
        reply = await (watch.guard(limited(job)) if watch else limited(job))
        if settings.worker_loop == "sdk":
            reply = _as_posted(reply)
        if not is_health(job):
            counts.ended(isinstance(reply, dict) and bool(reply.get("error")))
        return reply

    async def limited(job: dict[str, Any]) -> Any:
        if "input" not in job:
            return body_of_error(InvalidInput(job.get(UNREADABLE) or "the job has no `input`"))
        try:
            async with asyncio.timeout(settings.job_timeout_s or None):
                return await (_parts(handler, job) if asks(job, "stream") else handler.handle(job))
        except TimeoutError:  # that one: what goes wrong in a handler is an answer
            return body_of_error(too_late(settings.job_timeout_s), debug=settings.debug)

    return answer


def _as_posted(reply: Any) -> Any:
    """`reply`, or an error where RunPod would refuse it as too large: the SDK leaves such a job without an answer."""
    try:
        size = len(orjson.dumps(reply))
    except TypeError:  # what the SDK's writer takes all the same
        size = LARGEST_REPLY
    if size > LARGEST_REPLY // 2:  # the SDK's has a space behind each comma and colon
        size = len(json.dumps(reply, ensure_ascii=False).encode("utf-8", "replace"))
    try:
        check.refuse_large_answer(
            size, "ask for fewer items at once, or for `encoding_format` base64 where the task has it"
        )
    except InvalidInput as error:
        return body_of_error(error)
    return reply


async def _parts(handler: Handler, job: dict[str, Any]) -> Any:
    """What `/status` gives in the end: a list of the parts, or the error of the job or of a part."""
    parts: list[dict[str, Any]] = []

    async def keep(body: bytes) -> None:
        parts.append(orjson.loads(body))

    last = orjson.loads(await handler.body(job, keep))
    for body in (last, *parts):
        if "error" in body:
            return {"error": body["error"]}
    return [part["output"] for part in parts] if parts else last["output"]  # the list of models has no parts
