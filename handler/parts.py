"""The parts of a streamed job: answered a few ahead, and made anew with fewer rows where a body is too large."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from engine.tasks.base import Task

AHEAD = 4
"""Parts in work, so that the engine is busy while one is being sent; and as many may be on their way."""

_ROWS = 64  # of a part: some batches' worth, and at 384 numbers a row a third of a MB
_LARGEST = 1_000_000  # bytes of a body, RunPod's limit; 64 rows of 1536 numbers are more
_FILL = 0.8  # smaller parts are planned to fill so much of it, for no two are of one size


async def send_parts(
    task: Task, request: Any, answer: Callable[[Any], Awaitable[bytes]], send: Callable[[bytes], Awaitable[None]]
) -> None:
    """Give the bodies that `answer` makes of the parts of `request` to `send`, in order.

    One that is larger than RunPod takes is not sent: it, and what is behind it, goes in smaller parts.
    """
    waiting = deque(task.split(request, _ROWS))
    ahead: deque[tuple[Any, asyncio.Future[bytes]]] = deque()
    try:
        while waiting or ahead:
            while waiting and len(ahead) < AHEAD:
                part = waiting.popleft()
                ahead.append((part, asyncio.ensure_future(answer(part))))
            part, answering = ahead[0]
            body = await answering
            if rows := _fewer_rows(task, part, len(body)):
                for _, one in ahead:
                    one.cancel()
                rest = (*(one for one, _ in ahead), *waiting)
                waiting, ahead = deque(finer for one in rest for finer in task.split(one, rows)), deque()
                continue
            ahead.popleft()
            await send(body)
    finally:
        for _, one in ahead:  # of a stream that failed or was cancelled
            one.cancel()


def _fewer_rows(task: Task, part: Any, size: int) -> int:
    """Rows that a part should have whose answer had `size` bytes; 0 where that fits, or `part` cannot be split."""
    rows = len(task.split(part, 1)) if size > _LARGEST else 1
    return max(1, int(rows * _FILL * _LARGEST / size)) if rows > 1 else 0
