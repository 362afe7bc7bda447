"""The schedule of jobs: event-driven, on the SDK's own protocol functions.

It differs from the stock SDK's in four points. It never sleeps while there is work. It takes jobs whenever there is
room. A job that arrives while the worker shuts down is answered. A result is sent until RunPod has it.
"""

from __future__ import annotations

import asyncio
import reprlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from engine.errors import InvalidInput, Overloaded, WorkerFault, in_words
from handler.aggregate import post_parts
from handler.attempts import Attempt, Ended
from handler.counts import Counts
from handler.log import log
from handler.options import is_health
from handler.processes.signals import ending_signals
from handler.protocol.connections import AHEAD_S
from handler.protocol.sdk import Sdk
from handler.protocol.transport import Poll, Results
from handler.reply import ERROR, body_of_error, encode, too_late

_BUSY_PAUSE_S = 5.0  # after status 429: the stock SDK's
_FIRST_PAUSE_S, _FIRST_SIGNALS_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0, 5.0
_LAST_WORDS_S = 5.0  # for results that are still being sent when the drain time is over
_FIRST_SIGNALS_S = 0.05  # the first take goes first
_QUICK_POLL_S = 0.02
_QUICK_POLLS = 3


class JobLoop:
    """Takes jobs, runs `handler` on them and posts what it returns, until `stop` or a signal.

    `handler` gives the encoded body to post for a job, or an async generator of such bodies, the last of which closes
    the stream. A stream that ends well is answered with the list of its parts; see aggregate.py.
    """

    def __init__(
        self,
        sdk: Sdk,
        handler: Callable[[dict[str, Any]], Awaitable[bytes | AsyncGenerator[bytes, None]]],
        *,
        concurrency: int,
        drain_timeout_s: float = 20.0,
        result_timeout_s: float = 120.0,
        job_timeout_s: float = 0.0,
        debug: bool = False,
        on_first_take: Callable[[], None] = lambda: None,
    ) -> None:
        self.counts = Counts()
        self._sdk = sdk
        self._poll = Poll(sdk)
        self._results = Results(sdk, result_timeout_s)
        self._handler = handler
        self._concurrency = concurrency
        self._drain_timeout_s = drain_timeout_s
        self._job_timeout_s = job_timeout_s or None
        self._debug = debug
        self._on_first_take: Callable[[], None] | None = on_first_take
        self._progress: dict[str, Any] = {}
        self._reports: dict[str, asyncio.Task[None]] = {}
        self._attempts: dict[str, Attempt] = {}
        self._ended = Ended()
        self._busy: set[str] = set()  # whose answer is in the making, or may have to be made once more
        self._stop = asyncio.Event()
        self._room = asyncio.Event()

    def stop(self) -> None:
        """Take no more jobs, finish what runs, and let `run` return."""
        self._stop.set()
        self._room.set()
        self._poll.leave()

    async def run(self, ready: Awaitable[object] | None = None) -> None:
        """Serve until stopped; SIGTERM, SIGINT and SIGHUP stop. No job that was taken is left without an answer.

        `ready` is awaited before, while connections are opened. Raises what it raises.
        """
        try:
            if ready is not None:
                await self._connect_until(ready)
            await self._serve_until_stopped()
        finally:
            self._poll.close()
            self._results.close()

    async def _connect_until(self, ready: Awaitable[object]) -> None:
        connecting = asyncio.create_task(self._poll.open_ahead())
        self._results.open_ahead()
        try:
            await ready
            await asyncio.wait({connecting}, timeout=AHEAD_S)
        finally:
            connecting.cancel()

    async def _serve_until_stopped(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in ending_signals():
            loop.add_signal_handler(signum, self.stop)
        stop_signals = asyncio.create_task(self._follow_stop_signals())
        try:
            await self._take_until_stopped()
        finally:  # whatever ended it
            try:
                await self._drain()
            finally:
                stop_signals.cancel()
                await asyncio.gather(stop_signals, return_exceptions=True)

    # Taking

    async def _take_until_stopped(self) -> None:
        pause, quick_polls = _FIRST_PAUSE_S, 0
        while not self._stop.is_set():
            # A job whose result is being sent needs no room at the engine, but what is not sent yet may not pile up.
            room = min(self._concurrency - len(self._busy), 2 * self._concurrency - len(self._attempts))
            if room < 1:
                self._room.clear()
                await self._room.wait()
                continue
            if self._on_first_take is not None:
                asyncio.get_running_loop().call_soon(self._on_first_take)
                self._on_first_take = None
            begin = time.monotonic()
            try:
                jobs = await self._poll.take(room)
            except self._sdk.too_many_requests:
                await self._pause(_BUSY_PAUSE_S)
                continue
            except Exception as error:  # the network, the platform, a reply that is not JSON: none may end the worker
                if time.monotonic() - begin > _LONGEST_PAUSE_S:  # as where a proxy ends what is idle for a minute
                    pause = _FIRST_PAUSE_S
                log("WARN", f"taking a job failed ({type(error).__name__}: {error}); trying again in {pause:.1f} s")
                await self._pause(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
                continue
            pause = _FIRST_PAUSE_S
            started = [self._start(job) for job in jobs]
            del jobs  # they may be answered long before the next poll is
            if any(started):
                await asyncio.sleep(0)  # the engine gets them before the next poll is written: 0.3 ms when it is idle
            # The platform is expected to hold an empty poll open. Where it does not, ask less and less often.
            quick = not any(started) and time.monotonic() - begin < _QUICK_POLL_S
            quick_polls = quick_polls + 1 if quick else 0
            if quick_polls > _QUICK_POLLS:
                await self._pause(min(0.05 * (quick_polls - _QUICK_POLLS), 0.5))

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    def _start(self, job: Any) -> bool:
        """Whether `job` runs from now on."""
        job_id = job.get("id") if isinstance(job, dict) else None
        # In an address a dot, or two, is the folder, or the one above: the result would go to another path.
        if not isinstance(job_id, str) or job_id in ("", ".", ".."):
            log("ERROR", f"RunPod sent a job without an id, which nobody can answer: {reprlib.repr(job)}")
            return False
        if running := self._attempts.get(job_id):
            log("WARN", "RunPod sent a job again that is running; it is run again if this brings no answer", job_id)
            running.hand_out_again(job)
            self._busy.add(job_id)
            return False
        self._begin(self._ended.attempt_at(job_id), job)
        return True

    def _begin(self, attempt: Attempt, job: dict[str, Any]) -> None:
        # Known to the heartbeat before anything can fail.
        self._sdk.progress.add(attempt.job_id)
        self._busy.add(attempt.job_id)
        self._results.open_ahead()
        answer = attempt.answer = asyncio.create_task(self._answer(attempt, job))
        attempt.task = asyncio.create_task(self._serve(attempt, answer, is_health(job)), name=attempt.job_id)
        self._attempts[attempt.job_id] = attempt
        attempt.task.add_done_callback(lambda _: self._finished(attempt))

    def _finished(self, attempt: Attempt) -> None:
        del self._attempts[attempt.job_id]
        if (job := attempt.again) is not None and (following := attempt.following()):
            self._begin(following, job)
            return
        self._ended.add(attempt)
        self._busy.discard(attempt.job_id)
        self._sdk.progress.remove(attempt.job_id)
        self._room.set()

    # Running

    def report(self, job_id: str, progress: Any) -> None:
        """Post how far a running job is. What is overtaken by newer progress before it was sent is left out."""
        attempt = self._attempts.get(job_id)
        if attempt is not None and attempt.answer is not None:
            self._progress[job_id] = progress
            if job_id not in self._reports:
                self._reports[job_id] = asyncio.create_task(self._send_progress(job_id))

    async def _send_progress(self, job_id: str) -> None:
        while (progress := self._progress.pop(job_id, None)) is not None:
            await self._results.send_progress(job_id, encode({"status": "IN_PROGRESS", "output": progress}))
        del self._reports[job_id]

    async def _serve(self, attempt: Attempt, answer: asyncio.Task[bytes], is_uncounted: bool) -> None:
        """Await the answer and post it. Only the answering is ever cancelled: an answer that is wanted is posted."""
        job_id = attempt.job_id
        try:
            await answer
        except asyncio.CancelledError:
            if (this := asyncio.current_task()) is not None and this.cancelling():
                raise
        attempt.answer = None
        self._progress.pop(job_id, None)
        if attempt.again is None:
            self._busy.discard(job_id)
            self._room.set()
        if attempt.is_stopped:  # whatever the handler made of that: who waits for this job waits for another attempt
            log("INFO", "stopped by the platform", job_id)
            return
        leaves = answer.cancelled()
        body = encode(body_of_error(Overloaded("the worker is shutting down"))) if leaves else answer.result()
        failed = body.startswith(ERROR)
        if not is_uncounted:  # before anybody has the answer, who may then ask how many there were
            self.counts.ended(failed)
        if report := self._reports.get(job_id):
            await report  # a result that its own progress overtakes would be taken back by it
        stream, may_post = attempt.has_streamed, attempt.may_post
        attempt.is_taken = await self._results.send(job_id, body, stream=stream, may_post=may_post)
        if not (attempt.is_taken or is_uncounted):
            if attempt.following():
                self.counts.was_taken_back(failed)
            elif not failed:
                self.counts.was_lost()

    async def _answer(self, attempt: Attempt, job: dict[str, Any]) -> bytes:
        """What to post for `job`."""
        limit = asyncio.timeout(self._job_timeout_s)
        try:
            if "input" not in job:
                raise InvalidInput(job.get("unreadable") or "the job has no `input`")  # see take_body.py
            async with limit:
                body = await self._handler(job)
                return body if isinstance(body, bytes) else await post_parts(body, partial(self._send_chunk, attempt))
        except TimeoutError as error:
            late = too_late(self._job_timeout_s or 0.0)
            return encode(body_of_error(late if limit.expired() else error, debug=self._debug))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a handler may raise anything; a panic of Rust's is no Exception
            if isinstance(error, asyncio.CancelledError):
                this = asyncio.current_task()
                if self._stop.is_set() or (this is not None and this.cancelling()):
                    raise
                error = WorkerFault("the handler ended as cancelled, but nobody has cancelled the job")
            log("ERROR", f"the handler failed: {in_words(error)}", attempt.job_id)
            return encode(body_of_error(error, debug=self._debug))

    async def _send_chunk(self, attempt: Attempt, body: bytes) -> None:
        attempt.has_hole = True
        await self._results.send_chunk(attempt.job_id, body)
        attempt.has_hole, attempt.has_streamed = False, True

    # Stopping

    async def _follow_stop_signals(self) -> None:
        """Cancel the jobs that the platform wants stopped; nothing is posted for them."""
        pause = _FIRST_SIGNALS_PAUSE_S
        await asyncio.sleep(_FIRST_SIGNALS_S)
        while True:
            asked_at = time.monotonic()
            try:
                job_ids = await self._poll.stop_signals()
            except self._sdk.too_many_requests:
                await asyncio.sleep(_BUSY_PAUSE_S)
                continue
            except Exception as error:  # as above
                if time.monotonic() - asked_at > _LONGEST_PAUSE_S:
                    pause = _FIRST_SIGNALS_PAUSE_S
                log("WARN", f"asking for stop signals failed ({type(error).__name__}: {error})")
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
                continue
            pause = _FIRST_SIGNALS_PAUSE_S
            known = {job_id for job_id in job_ids or () if isinstance(job_id, str)} & self._attempts.keys()
            news = [self._attempts[job_id].stop(asked_at) for job_id in known]
            if job_ids is not None:
                self._ended.answered(asked_at)
            if not any(news):
                # The stock SDK's, for a platform that does not hold the poll open, or repeats what it said.
                await asyncio.sleep(1)

    async def _drain(self) -> None:
        """Let running jobs finish; after the time limit answer the rest with an error that says retry."""
        if self._attempts:
            log("INFO", f"stopping; {len(self._attempts)} jobs still run")
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain_timeout_s):
                while tasks := self._tasks():  # one that is tried again begins when its first attempt has ended
                    await asyncio.wait(tasks)
        cancelled: set[asyncio.Task[bytes]] = set()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                while tasks := self._tasks():
                    answers = {attempt.answer for attempt in self._attempts.values() if attempt.answer is not None}
                    for answer in answers - cancelled:
                        answer.cancel()
                    cancelled |= answers
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for attempt in self._attempts.values():
            attempt.again = None
            log("ERROR", "the worker ends before RunPod has taken the result", attempt.job_id)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [attempt.task for attempt in self._attempts.values()]
