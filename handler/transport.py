"""HTTP to RunPod: a session for long polls that can be given up without losing a job, and one that posts results."""

from __future__ import annotations

import asyncio
import io
import random
import time
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import aiohttp

from engine.errors import WorkerFault
from handler import trust
from handler.connections import AHEAD_S, Connector, open_ahead
from handler.log import log
from handler.reply import body_of_error, encode
from handler.sdk import Sdk

_POLL_TIMEOUT_S = 90.0  # the stock SDK's
_LEAVE_S = 1.0
_BODY_S = 20.0  # for the rest of a reply that has begun: jobs are on their way, and nobody else will answer them
_SETTLE_S = 0.5  # 0.1 was not enough on a busy machine: the server had not yet read the request when its end came
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_TEMPORARY = (408, 425, 429)
_TOO_LARGE = 413
_ATTEMPTS, _REFUSED_PAUSE_S = 3, 1.0  # for a status that says no: the stock SDK's, and some have passed
_REST_S = 1.0  # for what follows the status of a reply
_RECENT_S = 10.0  # after a result: its connection is still there
_ONCE = aiohttp.ClientTimeout(total=10)
_LARGE = 1_000_000  # bytes


class _OneRequest(Connector):
    """Knows the connection of the request in flight, to end it from this side, and can refuse a further one."""

    current: Any = None
    leaving = False

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        if self.leaving:  # aiohttp sends a GET again, unasked, when a kept-alive connection ends under it
            raise aiohttp.ClientConnectionError("leaving")
        self.current = await super().connect(*args, **kwargs)
        return self.current


class Poll:
    """Takes jobs and stop signals through the SDK's functions, each by one long poll at a time."""

    def __init__(self, sdk: Sdk) -> None:
        self._sdk = sdk
        self._body = b""
        self._replying = False
        self._connector = _OneRequest()
        headers, timeout = sdk.auth_header(), aiohttp.ClientTimeout(total=None, connect=30)
        self._jobs_session = aiohttp.ClientSession(
            connector=self._connector,
            headers=headers,
            timeout=timeout,
            response_class=self._remembering_reply(),
            cookie_jar=aiohttp.DummyCookieJar(),  # a jar would be searched before every request
        )
        self._signals_session = aiohttp.ClientSession(connector=Connector(), headers=headers, timeout=timeout)

    def _remembering_reply(self) -> type[aiohttp.ClientResponse]:
        """A reply that this object knows of."""
        poll = self  # not by aiohttp's tracing: with it one client of the fake engine got 2 % fewer answers

        class Reply(aiohttp.ClientResponse):
            async def start(self, connection: Any) -> aiohttp.ClientResponse:
                await super().start(connection)
                poll._replying = True  # its headers are here
                return self

            async def read(self) -> bytes:
                poll._body = await super().read()
                return poll._body

        return Reply

    async def open_ahead(self) -> None:
        """Open the connection that the first take will find."""
        await open_ahead(self._jobs_session, self._sdk.job_take_url)

    async def take(self, count: int, stop: asyncio.Event) -> list[Any]:
        """Up to `count` jobs; none when the platform has none, or when `stop` was set meanwhile.

        Raises what the SDK raises.
        """
        begin = time.monotonic()
        poll = asyncio.ensure_future(self._sdk.get_job(self._jobs_session, count))
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({poll, stopped}, timeout=_POLL_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if not poll.done():
                # A server that reads a request and its end at once may choose a job and find nobody to give it to.
                await asyncio.wait({poll}, timeout=max(0.0, begin + _SETTLE_S - time.monotonic()))
            if poll.done():
                return await self._jobs(poll)
            return await self._leave(poll)
        finally:
            stopped.cancel()
            self._body, self._replying = b"", False

    async def _jobs(self, poll: asyncio.Future[Any]) -> list[Any]:
        try:
            jobs = await poll
        except aiohttp.ClientConnectorCertificateError as error:
            _distrusted(error)
            raise
        except (aiohttp.ClientError, asyncio.TimeoutError):
            raise
        except Exception:
            # The SDK refuses a job without input and does not say whose it is. Its body tells: it must be answered.
            if jobs := await self._salvaged():
                return jobs
            raise
        return list(jobs or (await self._salvaged() if jobs is None and self._body else []))

    async def _salvaged(self) -> list[Any]:
        from handler.take_body import salvage

        return await asyncio.to_thread(salvage, self._body)

    async def _leave(self, poll: asyncio.Future[Any]) -> list[Any]:
        """End the poll so that a job handed over at this very instant still arrives; whatever did.

        Closing the connection would throw away a reply that is on its way. Shutting down only our sending half tells
        the server that we are leaving, and lets us read until it has said its last word. TLS knows no half; there we
        wait as long for a reply to begin. One that has begun is read to its end.
        """
        self._connector.leaving = True
        try:
            transport = self._connector.current.transport if self._connector.current is not None else None
            if not self._replying and transport is not None and transport.can_write_eof():
                transport.write_eof()
            await asyncio.wait({poll}, timeout=_LEAVE_S)
            if not poll.done() and self._replying:
                await asyncio.wait({poll}, timeout=_BODY_S)
            if poll.done():
                return await self._jobs(poll)
            poll.cancel()
            await asyncio.wait({poll})
            return []
        except Exception:  # the server hung up, as it was asked to
            return []
        finally:
            self._connector.leaving = False

    async def stop_signals(self) -> list[str]:
        """Ids of jobs to stop, from the SDK's long poll; empty when there are none. Raises what the SDK raises."""
        async with asyncio.timeout(_POLL_TIMEOUT_S):  # wait_for loses a cancellation that comes as the poll ends
            return list(await self._sdk.get_stop_signals(self._signals_session))

    async def close(self) -> None:
        """Close the connections."""
        await self._jobs_session.close()
        await self._signals_session.close()


class Results:
    """Posts results on kept-alive connections until RunPod has them.

    Not through the SDK's `send_result`: it gives up after three attempts without telling, and it sets the job's id as
    a header on the shared session, so that two results that are sent at once carry the same id.
    """

    def __init__(self, sdk: Sdk, timeout_s: float) -> None:
        self._sdk = sdk
        self._timeout_s = timeout_s
        self._last_post = float("-inf")
        self._ahead: asyncio.Task[None] | None = None
        self._session = aiohttp.ClientSession(
            connector=Connector(),
            headers=sdk.auth_header(),
            timeout=aiohttp.ClientTimeout(total=60),
            cookie_jar=aiohttp.DummyCookieJar(),  # as above
        )

    def open_ahead(self) -> None:
        """See to a connection for the result of a job that begins now, where none was used a moment ago."""
        is_opening = self._ahead is not None and not self._ahead.done()
        if not is_opening and time.monotonic() - self._last_post > _RECENT_S:
            self._ahead = asyncio.create_task(open_ahead(self._session, self._sdk.job_done_url))

    async def send(self, job_id: str, body: bytes, *, stream: bool = False) -> bool:
        """Post a job's final result, encoded; `stream` says that chunks went before it. Whether RunPod took it.

        A result that RunPod refuses for good (too large, say), or a large one that does not arrive, is replaced by an
        error that says so.
        """
        status = await self._post(self._sdk.job_done_url, job_id, body, stream)
        if body.startswith(b'{"output"'):
            size = f"{len(body) / 1e6:.1f} MB"
            if status in (400, _TOO_LARGE):
                why = f"RunPod refused the result with status {status} ({size})"
                status = await self._post(self._sdk.job_done_url, job_id, _refusal(why), stream)
            elif status is None and len(body) > _LARGE:
                # A gateway that resets the connection instead of saying 413: then something short passes.
                why = f"the result ({size}) did not arrive within {self._timeout_s:g} s"
                status = await self._post(self._sdk.job_done_url, job_id, _refusal(why), stream, once=True)
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

    async def _post(self, template: str, job_id: str, body: bytes, stream: bool, *, once: bool = False) -> int | None:
        """The HTTP status in the end, None when none came in time. What fails is tried again, a refusal a few times.

        With `once` nothing is, and a reply that takes long is not waited for.
        """
        name = quote(job_id, safe="", errors="replace")  # it may not change the path, or end the header
        url = f"{template.replace('$ID', name)}&isStream={'true' if stream else 'false'}"
        # The body is JSON although the header says otherwise: that is what the platform expects.
        headers = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded", "X-Request-ID": name}
        deadline, pause, attempt = time.monotonic() + self._timeout_s, _FIRST_PAUSE_S, 0
        while True:
            attempt, refusal = attempt + 1, None
            try:
                status = await self._post_once(url, body, headers, _ONCE if once else self._session.timeout)
                if status < 300:
                    return status
                reason = f"status {status}"
                if status < 500 and status not in _TEMPORARY:
                    refusal, pause = status, max(pause, _REFUSED_PAUSE_S)
            except Exception as error:  # no memory, no thread, no descriptor: whatever it is, the job needs its answer
                reason = f"{type(error).__name__}: {error}"
                if isinstance(error, aiohttp.InvalidURL):
                    deadline = 0.0
                elif isinstance(error, aiohttp.ClientConnectorCertificateError):
                    _distrusted(error)
            if once:
                return None
            if refusal == _TOO_LARGE or (refusal is not None and attempt >= _ATTEMPTS):
                log("ERROR", f"RunPod refused a result with {reason}", job_id)
                return refusal
            # Twice at least: a machine that was frozen, or asleep, wakes up behind the deadline.
            if time.monotonic() + pause > deadline and attempt > 1:
                log("ERROR", f"giving up on sending a result after {self._timeout_s:g} s: {reason}", job_id)
                return refusal
            log("WARN", f"sending a result failed ({reason}); trying again in {pause:.1f} s", job_id)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, guards nothing
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def _post_once(self, url: str, body: bytes, headers: dict[str, str], limit: aiohttp.ClientTimeout) -> int:
        """The HTTP status, which decides, whatever becomes of the rest of the reply. Raises what aiohttp raises."""
        if (ahead := self._ahead) is not None:
            await asyncio.wait({ahead}, timeout=AHEAD_S)
            if self._ahead is ahead:
                self._ahead = None
        self._last_post = time.monotonic()
        async with self._session.post(url, data=io.BytesIO(body), headers=headers, timeout=limit) as response:
            if response.method != "POST":  # a redirect made a GET of it, and lost the body
                raise aiohttp.ClientError(f"redirected to {response.url.host}")
            with suppress(Exception):  # read so that the connection can be used again
                async with asyncio.timeout(_REST_S):
                    await response.read()
            return response.status

    async def close(self) -> None:
        """Close the connections."""
        if self._ahead is not None:
            self._ahead.cancel()
        await self._session.close()


def _distrusted(error: aiohttp.ClientConnectorCertificateError) -> None:
    if advice := trust.advice(error.certificate_error):
        log("WARN", advice)
    trust.read_all()


def _refusal(why: str) -> bytes:
    return encode(body_of_error(WorkerFault(f"{why}; ask for less")))
