"""The parts of a streamed job: answered a few ahead, and made anew with fewer rows where a body is too large."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from engine.errors import AnswerTooLarge, Overloaded
from engine.tasks.base import Task

AHEAD = 4
"""Parts in work, so that the engine is busy while one is being sent; and as many may be on their way."""

_ROWS = 64  # of a part: some batches' worth, and at 384 numbers a row a third of a MB
_LARGEST = 1_000_000  # bytes of a body, RunPod's limit; 64 rows of 1536 numbers are more
_OBJECT = b'{"output":{"'
_FILL = 0.8  # smaller parts are planned to fill so much of it, for no two are of one size


@dataclass
class _Part:
    """A part of the job, and its answer."""  # without it dataclass loads `inspect`, to write one

    request: Any
    body: asyncio.Future[bytes | AnswerTooLarge] | None = None
    """Once it is in work."""


class _Work:
    """Answers parts of one job, which wait for one another where the queue has not room for them all."""

    def __init__(self, answer: Callable[[Any], Awaitable[bytes]], ahead: int) -> None:
        self.ahead = ahead
        """How many may be in work."""
        self._answer = answer
        self._running: set[asyncio.Task[Any]] = set()

    async def body(self, part: Any) -> bytes | AnswerTooLarge:
        """Its answer. Raises Overloaded where none of this job's own rows are in the way."""
        while (answer := await self._tried(part)) is None:
            self.ahead = min(self.ahead, len(self._running))
            # Of these none waits for this one: who waits is not among those that run.
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        return answer

    async def _tried(self, part: Any) -> bytes | AnswerTooLarge | None:
        """Its answer; None where the queue has no room for it beside the others that run."""
        self._running.add(_this_task())
        try:
            return _placed(part, await self._answer(part))
        except AnswerTooLarge as error:
            return error
        except Overloaded:
            if len(self._running) == 1:
                raise
            return None
        finally:
            self._running.discard(_this_task())


def _this_task() -> asyncio.Task[Any]:
    """Not kept in a variable: an error's traceback holds those, and the task holds the error (see Group.forget)."""
    task = asyncio.current_task()
    assert task is not None, "parts are tasks"
    return task


async def send_parts(
    task: Task, request: Any, answer: Callable[[Any], Awaitable[bytes]], send: Callable[[bytes], Awaitable[None]]
) -> bytes | None:
    """Give the bodies that `answer` makes of the parts of `request` to `send`, in order, objects with their place.

    One that is larger than RunPod takes, or whose rows hold more than they may, is not sent: it, and what is not in
    work behind it, goes in smaller parts. What is in work is measured in its turn. Where `task` gives no parts, the
    answer to the whole is returned instead.
    """
    parts = deque(_Part(one) for one in task.split(request, _ROWS))
    if not parts:
        return await answer(request)
    alone = getattr(task, "first_part_alone", False)
    work = _Work(answer, 1 if alone else AHEAD)
    try:
        while parts:
            for part in islice(parts, work.ahead):
                part.body = part.body or asyncio.ensure_future(work.body(part.request))
            first = parts[0]
            assert first.body is not None, "it is the first of those"
            body = await first.body
            if rows := _fewer_rows(task, first.request, body):
                first.body = None
                parts = deque(finer for part in parts for finer in _finer(task, part, rows))
            elif isinstance(body, AnswerTooLarge):
                try:
                    raise body
                finally:
                    del body
            else:
                parts.popleft()
                work.ahead, alone = AHEAD if alone else work.ahead, False
                await send(body)
    finally:
        for part in parts:  # of a stream that failed or was cancelled
            if part.body is not None:
                part.body.cancel()
                part.body = None  # which holds the error that this ends with: see Group.forget
    return None


def _placed(part: Any, body: bytes) -> bytes:
    """`body` with the place of its first item in the whole list, where it can hold that.

    RunPod gets a part again whose acknowledgement was lost, and hands both out.
    """
    if not (getattr(part, "is_part", False) and body.startswith(_OBJECT)):
        return body
    return b'{"output":{"first":%d,%s' % (part.first, body[len(_OBJECT) - 1 :])


def _finer(task: Task, part: _Part, rows: int) -> list[_Part]:
    return [part] if part.body is not None else [_Part(one) for one in task.split(part.request, rows)]


def _fewer_rows(task: Task, part: Any, answer: bytes | AnswerTooLarge) -> int:
    """Rows that a part should have whose answer was `answer`; 0 where that fits, or `part` cannot be split."""
    size, most = (answer.size, answer.most) if isinstance(answer, AnswerTooLarge) else (len(answer), None)
    most = most or _LARGEST
    rows = len(task.split(part, 1)) if size > most else 1
    return max(1, int(rows * _FILL * most / size)) if rows > 1 else 0
