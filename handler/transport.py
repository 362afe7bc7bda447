"""HTTP to RunPod: a session for long polls that can be given up without losing a job, and one that posts results."""

from __future__ import annotations

import asyncio
import io
import json
import random
import sys
import time
from typing import Any

import aiohttp

from handler.log import log
from handler.reply import encode
from handler.sdk import Sdk

_POLL_TIMEOUT_S = 90.0  # the stock SDK's
_LEAVE_S = 1.0
_SETTLE_S = 0.5  # 0.1 was not enough on a busy machine: the server had not yet read the request when its end came
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_TEMPORARY = (408, 425, 429)
_DEEPEST = 10_000  # levels of nested JSON: what Go's reader, for one, lets through
_ONCE = aiohttp.ClientTimeout(total=10)


def jobs_in(body: bytes) -> list[Any]:
    """The jobs in a reply of RunPod's that the SDK could not read; none where they cannot be told.

    JSON allows what Python's reader refuses by default: values nested a thousand deep, numbers of more than 4,300
    digits, which are infinite here. One such job may not take those beside it along, and has an answer to get itself.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEEPEST))
    try:
        found = json.loads(body.decode("utf-8", "replace"), parse_int=_whole_number)
    except (ValueError, RecursionError):
        return []
    finally:
        sys.setrecursionlimit(limit)
    if isinstance(found, list):
        return found
    return [found] if isinstance(found, dict) and "id" in found else []


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= sys.int_info.default_max_str_digits else float(digits)


class _OneRequest(aiohttp.TCPConnector):
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
        self._connector = _OneRequest(limit=0)
        trace = aiohttp.TraceConfig()
        trace.on_response_chunk_received.append(self._remember)
        headers, timeout = sdk.auth_header(), aiohttp.ClientTimeout(total=None, connect=30)
        self._jobs_session = aiohttp.ClientSession(
            connector=self._connector,
            headers=headers,
            timeout=timeout,
            trace_configs=[trace],
            cookie_jar=aiohttp.DummyCookieJar(),  # a jar would be searched before every request
        )
        self._signals_session = aiohttp.ClientSession(headers=headers, timeout=timeout)

    async def _remember(self, session: Any, context: Any, params: aiohttp.TraceResponseChunkReceivedParams) -> None:
        self._body = params.chunk

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
            self._body = b""

    async def _jobs(self, poll: asyncio.Future[Any]) -> list[Any]:
        try:
            jobs = await poll
        except (aiohttp.ClientError, asyncio.TimeoutError):
            raise
        except Exception:
            # The SDK refuses a job without input and does not say whose it is. Its body tells: it must be answered.
            if jobs := jobs_in(self._body):
                return jobs
            raise
        # For JSON that Python does not read the SDK says that there is none.
        return list(jobs) if jobs else jobs_in(self._body)

    async def _leave(self, poll: asyncio.Future[Any]) -> list[Any]:
        """End the poll so that a job handed over at this very instant still arrives; whatever did.

        Closing the connection would throw away a reply that is on its way. Shutting down only our sending half tells
        the server that we are leaving, and lets us read until it has said its last word. TLS knows no half; there we
        wait as long for a reply that is under way.
        """
        self._connector.leaving = True
        try:
            transport = self._connector.current.transport if self._connector.current is not None else None
            if transport is not None and transport.can_write_eof():
                transport.write_eof()
            await asyncio.wait({poll}, timeout=_LEAVE_S)
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
        return list(await asyncio.wait_for(self._sdk.get_stop_signals(self._signals_session), _POLL_TIMEOUT_S))

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
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=sdk.auth_header(),
            timeout=aiohttp.ClientTimeout(total=60),
            cookie_jar=aiohttp.DummyCookieJar(),  # as above
        )

    async def send(self, job_id: str, body: bytes, *, stream: bool = False) -> bool:
        """Post a job's final result, encoded; `stream` says that chunks went before it. Whether RunPod took it.

        A result that RunPod refuses for good (too large, say) is replaced by an error that says so.
        """
        status = await self._post(self._sdk.job_done_url, job_id, body, stream)
        if status is not None and status in (400, 413) and body.startswith(b'{"output"'):
            size = f"{len(body) / 1e6:.1f} MB"
            refusal = {"error": f"worker fault: RunPod refused the result with status {status} ({size}); ask for less"}
            status = await self._post(self._sdk.job_done_url, job_id, encode(refusal), stream)
        return status is not None and status < 300

    async def send_chunk(self, job_id: str, body: bytes) -> None:
        """Post one part of a streamed result, encoded."""
        await self._post(self._sdk.job_stream_url, job_id, body, False)

    async def send_progress(self, job_id: str, body: bytes) -> None:
        """Post how far a job is, encoded. Tried once: what comes next says more."""
        await self._post(self._sdk.job_done_url, job_id, body, False, once=True)

    async def _post(self, template: str, job_id: str, body: bytes, stream: bool, *, once: bool = False) -> int | None:
        """The final HTTP status; None when the time ran out. Server errors and broken connections are tried again.

        With `once` they are not, and a reply that takes long is not waited for.
        """
        url = f"{template.replace('$ID', job_id)}&isStream={'true' if stream else 'false'}"
        # The body is JSON although the header says otherwise: that is what the platform expects.
        headers = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded", "X-Request-ID": job_id}
        deadline, pause = time.monotonic() + (0 if once else self._timeout_s), _FIRST_PAUSE_S
        limit = _ONCE if once else self._session.timeout
        while True:
            try:
                async with self._session.post(url, data=io.BytesIO(body), headers=headers, timeout=limit) as response:
                    await response.read()
                    if response.status < 500 and response.status not in _TEMPORARY:
                        if response.status >= 300:
                            log("ERROR", f"RunPod refused a result with status {response.status}", job_id)
                        return response.status
                    reason = f"status {response.status}"
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                reason = f"{type(error).__name__}: {error}"
            if time.monotonic() + pause > deadline:
                if not once:
                    log("ERROR", f"giving up on sending a result after {self._timeout_s:g} s: {reason}", job_id)
                return None
            log("WARN", f"sending a result failed ({reason}); trying again in {pause:.1f} s", job_id)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, guards nothing
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()
