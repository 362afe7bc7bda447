"""handler(job): a job becomes a request, rows, outputs and a reply, or one sentence that says what went wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias, TypeVar

from engine.batching.batcher import Batcher
from engine.batching.passage import Passage
from engine.batching.router import Router
from engine.batching.stats import Stats
from engine.errors import Overloaded, WorkerError, in_words
from engine.tasks import payload as check
from engine.tasks.base import Json, Task
from engine.tasks.budget import Share
from engine.tensors import Row
from handler.heap import Heap
from handler.log import log
from handler.parts import send_parts
from handler.reply import body_of_error, body_of_json, encode, to_json

T = TypeVar("T")
Finish: TypeAlias = Callable[[Json], Any]

_INLINE_CHARS = 4_000
"""Below this a payload is prepared on the event loop, if the task calls it quick: a hop to a thread and back costs more
than the work."""
_INLINE_ANSWERS = 16
_SOON_ANSWERS = 512
"""Of more it may take seconds to put them together."""
_SOON_THREADS = 4
"""For what is soon done, so that it does not wait for large payloads, which may hold all of asyncio's own threads."""
_BLOCKING_THREADS = 32
"""For tasks that wait, beside the threads that compute, so that slow servers keep nobody from those."""
_MODELS_ROUTE = "/v1/models"


class Handler:
    """Answers jobs with one task on one batcher, or on those of several graphs."""

    def __init__(
        self,
        task: Task,
        batcher: Batcher | Router | Passage,
        health: Callable[[], Json],
        *,
        debug: bool = False,
        stats: Stats | None = None,
    ) -> None:
        self._task = task
        self._batcher = batcher
        self._health = health
        self._debug = debug
        self._stats = stats or Stats()
        blocking = getattr(task, "blocking", False)
        self._waiting = ThreadPoolExecutor(_BLOCKING_THREADS, thread_name_prefix="wait") if blocking else None
        self._heap = Heap()
        self._soon = ThreadPoolExecutor(_SOON_THREADS, thread_name_prefix="soon")
        self._is_quick: Callable[[Any], bool] = getattr(task, "is_quick", lambda request: True)
        self._answers_in: Callable[[Any, int], int] = getattr(task, "answers_in", lambda request, rows: rows)

    async def handle(self, job: dict[str, Any]) -> Json:
        """The reply to `job`, ready for any JSON writer; `{"error": sentence}` when it fails.

        For the stock SDK, by way of stock.py; our own loop has `body`.
        """
        return await self._guarded(job, to_json)

    async def body(
        self,
        job: dict[str, Any],
        on_chunk: Callable[[bytes], Awaitable[None]] | None = None,
        on_progress: Callable[[Json], None] | None = None,
    ) -> bytes:
        """The body to post for `job`: what `handle` returns, encoded here rather than by whoever posts it.

        A job with `"stream": true` gives the bodies of its parts to `on_chunk`, in order, which may keep it waiting,
        and ends with an empty list, as a generator handler of the SDK does, unless its task has no parts of it. A job
        with `"progress": true` tells `on_progress` how far it is.
        """
        body = await self._guarded(job, lambda reply: encode(body_of_json(reply)), on_chunk, on_progress)
        return body if isinstance(body, bytes) else encode(body)

    async def _guarded(
        self,
        job: dict[str, Any],
        finish: Finish,
        on_chunk: Callable[[Any], Awaitable[None]] | None = None,
        on_progress: Callable[[Json], None] | None = None,
    ) -> Any:
        try:
            return await self._reply(job.get("input"), finish, on_chunk, on_progress)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # every job that was taken gets an answer; a panic of Rust's is no Exception
            if not isinstance(error, WorkerError):
                log("ERROR", in_words(error), job.get("id"))
            return body_of_error(error, debug=self._debug)

    async def _reply(
        self,
        payload: Json,
        finish: Finish,
        on_chunk: Callable[[Any], Awaitable[None]] | None,
        on_progress: Callable[[Json], None] | None,
    ) -> Any:
        if payload == {"health": True}:
            return finish(self._health())
        if isinstance(payload, dict) and payload.get("openai_route") == _MODELS_ROUTE:
            return finish(_models(self._health()["model"]))
        clock = _Clock(self._stats)
        check.refuse_lone_surrogates(payload)
        payload, timings, stream, progress = _options(payload)
        request = self._task.parse(payload)
        try:
            if not stream or on_chunk is None:
                report = on_progress if progress else None
                is_large = _is_large(payload)
                return await self._answer(request, finish, clock, timings, is_large, report)

            def answer(part: Any) -> Awaitable[Any]:
                return self._answer(part, finish, _Clock(self._stats), timings, is_large=True)

            whole = await send_parts(self._task, request, answer, on_chunk)
            return finish([]) if whole is None else whole
        except BaseException:  # cancelled, or a part of a stream failed, behind which others are in work
            if spent := getattr(request, "spent", None):  # its threads know nothing of that, and would go on fetching
                spent.stop()
            raise

    async def _answer(
        self,
        request: Any,
        finish: Finish,
        clock: _Clock,
        timings: bool,
        is_large: bool,
        on_progress: Callable[[Json], None] | None = None,
    ) -> Any:
        share = Share()
        if isinstance(getattr(request, "share", None), Share):
            request.share = share  # a copy of a request, as parts are, would bring that of another
        with share:
            try:
                in_thread = is_large or self._waiting is not None or not self._is_quick(request)
                threads = self._waiting or (None if is_large else self._soon)
                rows = await self._rows(request, share, in_thread, threads)
                clock.lap("prepare")
                on_rows_done = None
                if on_progress is not None:
                    on_rows_done = lambda done: on_progress({"rows_done": done, "rows": len(rows)})  # noqa: E731
                outputs = await self._batcher.run(rows, on_rows_done)
                clock.lap("engine")

                def conclude() -> Any:
                    reply = self._task.postprocess(request, outputs)
                    if timings and isinstance(reply, dict):  # the task may keep its own, and answer with it again
                        reply = {**reply, "timings_ms": clock.laps_ms}
                    return finish(reply)

                # What comes out of a task that waits for media may be masks of megabytes.
                answers = self._answers_in(request, len(rows))
                in_thread = self._waiting is not None or answers > _INLINE_ANSWERS
                result = await _run(in_thread, conclude, self._soon if answers <= _SOON_ANSWERS else None)
                clock.lap("finish")
                return result
            finally:
                self._heap.ended(share.size)

    async def _rows(self, request: Any, share: Share, in_thread: bool, threads: Executor | None) -> Sequence[Row]:
        """Those of a job: where other jobs hold the memory, it waits without rows, and makes them anew in its turn."""
        while True:
            try:
                return await _run(in_thread, lambda: self._task.preprocess(request), threads)
            except Overloaded:
                if not share.is_refused:
                    raise
            await share.turn()


def _models(name: str) -> Json:
    """What OpenAI's client gets for its list of models. Nobody knows when a model was made; it wants a number."""
    return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "worker-tensorrt"}]}


def _options(payload: Json) -> tuple[Json, bool, bool, bool]:
    """The payload without the options that are for every task, which no task knows, and their values."""
    if not isinstance(payload, dict):
        return payload, False, False, False
    rest = dict(payload)
    timings, stream, progress = (
        check.boolean({name: rest.pop(name, False)}, name, False) for name in ("timings", "stream", "progress")
    )
    return rest, timings, stream, progress


async def _run(in_thread: bool, work: Callable[[], T], threads: Executor | None = None) -> T:
    if not in_thread:
        return work()
    return await asyncio.get_running_loop().run_in_executor(threads, partial(_out_of_a_thread, work))


def _out_of_a_thread(work: Callable[[], T]) -> T:
    """What `work` returns. Raises RuntimeError for what asyncio would not bring to who waits, or as a cancellation."""
    try:
        return work()
    except (StopIteration, CancelledError, asyncio.CancelledError) as error:
        raise RuntimeError(f"a thread raised {in_words(error)}") from error


class _Clock:
    """Times the stages of a job, or of a part of it that was checked with the whole.

    They are prepare (parse, tokenise), engine (wait and run), finish (postprocess, encode).
    """

    def __init__(self, stats: Stats) -> None:
        self._laps: dict[str, float] = {}
        self._stats = stats
        self._last = time.perf_counter()

    @property
    def laps_ms(self) -> dict[str, float]:
        return {name: round(seconds * 1e3, 3) for name, seconds in self._laps.items()}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._stats.stage(name, now - self._last)
        self._laps[name] = now - self._last
        self._last = now


def _is_large(payload: Json) -> bool:
    """Whether the strings in `payload` hold more than _INLINE_CHARS characters; looks no further than it must."""
    budget, pending = _INLINE_CHARS, [payload]
    while pending and budget >= 0:
        value = pending.pop()
        budget -= max(1, len(value)) if isinstance(value, str) else 1
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value[: _INLINE_CHARS + 1])
    return budget < 0
