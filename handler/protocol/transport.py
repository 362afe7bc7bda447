"""HTTP to RunPod: a session for long polls that can be given up without losing a job, and one that posts results."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from engine.errors import InvalidInput, WorkerFault
from handler.aggregate import END
from handler.log import Seldom, log
from handler.protocol import trust
from handler.protocol.connections import AHEAD_S, Client
from handler.protocol.http1 import Connection, Interrupted, Reply
from handler.protocol.sdk import Sdk
from handler.reply import body_of_error, encode

_POLL_TIMEOUT_S = 90.0  # the stock SDK's
_LEAVE_S = 1.0
_BODY_S = 20.0  # for more of a reply that has begun: jobs are on their way, and nobody else will answer them
_SETTLE_S = 0.5  # 0.1 was not enough on a busy machine: the server had not yet read the request when its end came
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_TEMPORARY = (408, 425, 429)
_NO_CONTENT, _TOO_LARGE = 204, 413
_REFUSALS, _REFUSED_PAUSE_S = 3, 1.0  # by a status that says no: the stock SDK's, and some have passed
_REST_S = 1.0  # for what follows the status of a reply
_RECENT_S = 10.0  # after a result: its connection is still there
_POST_S, _LEAST_S, _ONCE_S = 60.0, 5.0, 10.0  # for one attempt: at most, at least, and for one that is not repeated
_LARGE = 1_000_000  # bytes
# The body is JSON although the header says otherwise: that is what the platform expects.
_POST_HEADERS = "charset: utf-8\r\nContent-Type: application/x-www-form-urlencoded\r\n"


class _Session:
    """What the SDK's functions take for aiohttp's session: `async with session.get(url) as response`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.connection: Connection | None = None
        """That of the last request."""
        self.asked_at = float("-inf")
        """When it was sent, on the clock time.monotonic."""
        self.reply: Reply | None = None
        """To the last request, once it is here."""

    @asynccontextmanager
    async def get(self, url: str) -> AsyncIterator[Reply]:
        """As in aiohttp."""
        self.connection = self.reply = None
        self.reply = await self._client.get(url, self._goes_over)
        yield self.reply

    def _goes_over(self, connection: Connection) -> None:
        self.connection, self.asked_at = connection, time.monotonic()


class Poll:
    """Takes jobs and stop signals through the SDK's functions, each by one long poll at a time."""

    def __init__(self, sdk: Sdk) -> None:
        self._sdk = sdk
        self._jobs_client, self._signals_client = Client(sdk.auth_header()), Client(sdk.auth_header())
        self._jobs_session, self._signals_session = _Session(self._jobs_client), _Session(self._signals_client)
        self._limit: asyncio.Timeout | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._left_at = float("inf")

    async def open_ahead(self) -> None:
        """Open the connection that the first take will find."""
        await self._jobs_client.open_ahead(self._sdk.job_take_url)

    async def take(self, count: int) -> list[Any]:
        """Up to `count` jobs; none when the platform has none, or when `leave` was called meanwhile.

        Raises what the SDK and its session raise.
        """
        self._left_at = float("inf")
        timer = asyncio.get_running_loop().call_later(_POLL_TIMEOUT_S, self._begin_to_leave)
        try:
            async with asyncio.timeout(None) as self._limit:
                return await self._jobs(count)
        except Exception as error:
            if self._jobs_client.leaving:  # the server hung up, as it was asked to, or went on until the limit
                if isinstance(error, Interrupted) and error.status is not None:
                    log("WARN", f"RunPod's reply to a take was cut off, and what jobs it held are lost: {error}")
                return []
            _distrusted(error)
            raise
        finally:
            timer.cancel()
            self._limit, self._jobs_client.leaving = None, False
            self._jobs_session.reply = None  # it may be large, and the next one long in coming
            if self._leaving is not None:
                self._leaving.cancel()
                self._leaving = None

    async def _jobs(self, count: int) -> list[Any]:
        try:
            jobs = await self._sdk.get_job(self._jobs_session, count)
        except Exception:
            # The SDK refuses a job without input and does not say whose it is. Its body tells: it must be answered.
            if jobs := await self._salvaged():
                return jobs
            raise
        if jobs is None:
            jobs, reply = await self._salvaged(), self._jobs_session.reply
            if not jobs and reply is not None and reply.unreadable:  # the SDK takes that for no job
                raise ValueError(f"RunPod's reply to a take is not JSON: {reply.unreadable}")
        return list(jobs)

    async def _salvaged(self) -> list[Any]:
        reply = self._jobs_session.reply
        if reply is None or not reply.was_read:
            return []
        from handler.protocol.take_body import salvage

        return await asyncio.to_thread(salvage, reply.body)

    def leave(self) -> None:
        """End a `take` that waits, so that a job handed over at this very instant still arrives."""
        self._left_at = min(self._left_at, time.monotonic())
        self._begin_to_leave()

    def _begin_to_leave(self) -> None:
        if self._limit is not None and self._leaving is None:
            self._leaving = asyncio.create_task(self._leave(self._limit))

    async def _leave(self, limit: asyncio.Timeout) -> None:
        """`take` ends this when it ends.

        Closing the connection would throw away a reply that is on its way. Shutting down only our sending half tells
        the server that we are leaving, and lets us read until it has said its last word. TLS knows no half; there we
        wait as long for a reply to begin. One that has begun is read to its end, with pauses of up to _BODY_S, and for
        no longer than that after `leave`.
        """
        session = self._jobs_session
        # A server that reads a request and its end at once may choose a job and find nobody to give it to.
        while (wait := session.asked_at + _SETTLE_S - time.monotonic()) > 0:  # noqa: ASYNC110 - for a clock
            await asyncio.sleep(wait)
        self._jobs_client.leaving = True
        connection = session.connection
        if connection is not None and connection.is_asking:
            if not connection.replying:
                connection.end_sending()
            await asyncio.sleep(_LEAVE_S)
            while connection.replying:
                if (wait := min(self._left_at, connection.heard_at) + _BODY_S - time.monotonic()) <= 0:
                    break
                await asyncio.sleep(wait)
            # Not by cancelling `take`, which by now may have a reply and look through it for jobs.
            connection.close("it took too long")
        elif session.reply is None:  # it connects; where there is a reply, it is looked through for jobs
            limit.reschedule(0.0)  # long ago, on the event loop's clock

    async def stop_signals(self) -> list[str] | None:
        """Ids of jobs to stop, from the SDK's long poll; None when nobody has told any. Raises what the SDK raises."""
        limit = asyncio.timeout(_POLL_TIMEOUT_S)
        try:
            async with limit:  # wait_for loses a cancellation that comes as the poll ends
                job_ids = list(await self._sdk.get_stop_signals(self._signals_session))
                return job_ids if job_ids or await self._are_none() else None
        except TimeoutError:
            if limit.expired():  # a platform that holds it for longer, or a machine that was frozen
                return None
            raise

    async def _are_none(self) -> bool:
        """Whether RunPod has said so: the SDK takes what it cannot read, a gateway's page say, for no signals."""
        reply = self._signals_session.reply
        if reply is None or reply.status == _NO_CONTENT:
            return True
        if not reply.was_read or reply.unreadable:
            return False
        said = await reply.json()
        return isinstance(said, dict) and isinstance(said.get("jobsToStop"), list)

    def close(self) -> None:
        """Close the connections."""
        self._jobs_client.close()
        self._signals_client.close()


class Results:
    """Posts results on kept-alive connections until RunPod has them.

    Not through the SDK's `send_result`: it gives up after three attempts without telling, and it sets the job's id as
    a header on the shared session, so that two results that are sent at once carry the same id.
    """

    def __init__(self, sdk: Sdk, timeout_s: float) -> None:
        self._sdk = sdk
        self._timeout_s = timeout_s
        self._last_post = float("-inf")
        self._complaints = Seldom()
        self._ahead: asyncio.Task[None] | None = None
        self._client = Client({name: value for name, value in sdk.auth_header().items() if name != "Content-Type"})

    def open_ahead(self) -> None:
        """See to a connection for the result of a job that begins now, where none was used a moment ago."""
        is_opening = self._ahead is not None and not self._ahead.done()
        if not is_opening and time.monotonic() - self._last_post > _RECENT_S:
            self._ahead = asyncio.create_task(self._client.open_ahead(self._sdk.job_done_url))

    async def send(
        self,
        job_id: str,
        body: bytes,
        *,
        stream: bool = False,
        may_post: Callable[[bool], bool] = lambda is_substitute: True,
    ) -> bool:
        """Post a job's final result, encoded; `stream` says that chunks went before it. Whether RunPod took it.

        A result that RunPod refuses for good (too large, say), or a large one that does not arrive, is replaced by an
        error that says so; the list of parts that RunPod has already, by an empty one, which stands for it. Before
        each attempt `may_post` is asked, with whether it is one of the substitute.
        """
        status = await self._post(self._sdk.job_done_url, job_id, body, stream, may_post=lambda: may_post(False))
        why, once, size = "", False, f"{len(body) / 1e6:.1f} MB"
        if body.startswith(b'{"output"'):
            if status in (400, _TOO_LARGE):
                why = f"RunPod refused the result with status {status} ({size})"
            elif status is None and len(body) > _LARGE:
                # A gateway that resets the connection instead of saying 413: then something short passes.
                why, once = f"the result ({size}) did not arrive within {self._timeout_s:g} s", True
        if why:
            is_list = stream and body.startswith(b'{"output":[')
            short = END if is_list else _refusal(why, status)
            status = await self._post(
                self._sdk.job_done_url, job_id, short, stream, once=once, may_post=lambda: may_post(True)
            )
            if not is_list:
                return False
        return status is not None and status < 300

    async def send_chunk(self, job_id: str, body: bytes) -> None:
        """Post one part of a streamed result, encoded. Raises WorkerFault when RunPod does not take it."""
        status = await self._post(self._sdk.job_stream_url, job_id, body, False)
        if status is None or status >= 300:
            why = "did not arrive" if status is None else f"was refused by RunPod with status {status}"
            raise WorkerFault(f"a part of the stream ({len(body) / 1e6:.1f} MB) {why}; the rest is not sent")

    async def send_progress(self, job_id: str, body: bytes) -> None:
        """Post how far a job is, encoded. Tried once: what comes next says more."""
        await self._post(self._sdk.job_done_url, job_id, body, False, once=True)

    async def _post(
        self,
        template: str,
        job_id: str,
        body: bytes,
        stream: bool,
        *,
        once: bool = False,
        may_post: Callable[[], bool] = lambda: True,
    ) -> int | None:
        """The HTTP status in the end, None when none came in time. What fails is tried again, a refusal a few times.

        With `once` nothing is, and a reply that takes long is not waited for.
        """
        name = quote(job_id, safe="", errors="replace")  # it may not change the path, or end the header
        url = f"{template.replace('$ID', name)}&isStream={'true' if stream else 'false'}"
        headers = f"{_POST_HEADERS}X-Request-ID: {name}\r\n"
        begin, pause, attempt, refusals = time.monotonic(), _FIRST_PAUSE_S, 0, 0
        deadline = begin + self._timeout_s
        while may_post():
            attempt, refusal = attempt + 1, None
            try:
                limit_s = _ONCE_S if once else min(_POST_S, max(_LEAST_S, deadline - time.monotonic()))
                status = await self._post_once(url, body, headers, limit_s)
                if status < 300:
                    return status
                reason = f"status {status}"
                if status < 500 and status not in _TEMPORARY:
                    refusal, refusals, pause = status, refusals + 1, max(pause, _REFUSED_PAUSE_S)
            except Exception as error:  # no memory, no thread, no descriptor: whatever it is, the job needs its answer
                reason = f"{type(error).__name__}: {error}"
                if isinstance(error, ValueError) and not isinstance(error, OSError):  # no address; TLS's are both
                    deadline = 0.0
                _distrusted(error)
            if once:
                return None
            if refusal == _TOO_LARGE or refusals >= _REFUSALS:
                log("ERROR", f"RunPod refused a result with {reason}", job_id)
                return refusal
            # Twice at least: a machine that was frozen, or asleep, wakes up behind the deadline.
            if time.monotonic() + pause > deadline and attempt > 1:
                log("ERROR", f"giving up on sending a result after {time.monotonic() - begin:.0f} s: {reason}", job_id)
                return refusal
            self._complaints.log("WARN", f"sending a result failed ({reason}); trying again in {pause:.1f} s", job_id)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, guards nothing
            pause = min(pause * 2, _LONGEST_PAUSE_S)
        return None

    async def _post_once(self, url: str, body: bytes, headers: str, limit_s: float) -> int:
        """The HTTP status, which decides, whatever becomes of the rest of the reply. Raises as Client.post does."""
        if (ahead := self._ahead) is not None:
            await asyncio.wait({ahead}, timeout=AHEAD_S)
            if self._ahead is ahead:
                self._ahead = None
        self._last_post = time.monotonic()
        async with asyncio.timeout(limit_s):
            return await self._client.post(url, body, headers, rest_s=_REST_S)

    def close(self) -> None:
        """Close the connections."""
        if self._ahead is not None:
            self._ahead.cancel()
        self._client.close()


def _distrusted(error: Exception) -> None:
    if isinstance(error, ssl.SSLCertVerificationError):
        if advice := trust.advice(error):
            log("WARN", advice)
        trust.read_all()


def _refusal(why: str, status: int | None) -> bytes:
    if status == _TOO_LARGE:
        ways = "or for `stream` or `encoding_format` base64 where the task has it"
        return encode(body_of_error(InvalidInput(f"{why}, for it is too large; ask for fewer items at once, {ways}")))
    return encode(body_of_error(WorkerFault(f"{why}; ask for less")))
