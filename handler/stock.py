"""The worker's handler as RunPod's own loop and its local modes call it: a function of a job, for all of them alike.

They stream from generator functions only, and then every job. So a streamed job's parts are one reply here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import orjson

from engine.config import Settings
from engine.errors import InvalidInput
from handler.counts import Counts
from handler.handler import Handler
from handler.options import asks, is_health
from handler.reply import body_of_error, too_late
from handler.take_body import UNREADABLE


def answers(
    handler: Handler, settings: Settings, counts: Counts
) -> Callable[[dict[str, Any]], Coroutine[Any, Any, Any]]:
    """`handler` as the SDK calls it, with the time limit of a job; `counts` learns how it ended."""

    async def answer(job: dict[str, Any]) -> Any:
        reply = await limited(job)
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
