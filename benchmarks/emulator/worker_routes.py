"""The routes that a worker uses.

Here a worker's requests become calls on the exchange, and faults strike. No state lives here.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import web

from .exchange import Exchange, now
from .faults import Fault, Faults
from .records import JobRecord
from .replies import BODY_LIMIT, CHUNK_LIMIT, MB, NotJson, decode_object, refusal, reply

Handler = Callable[[web.Request], Awaitable[web.Response]]


class WorkerRoutes:
    """The five routes a worker uses, each behind the API key (sent raw) and the faults."""

    def __init__(self, exchange: Exchange, faults: Faults, endpoint_id: str, api_key: str) -> None:
        self._exchange, self._store = exchange, exchange.store
        self._faults, self._api_key = faults, api_key
        self._base = f"/v2/{endpoint_id}"

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        base = self._base
        app.router.add_get(f"{base}/job-take/{{worker}}", self._guarded("job-take", self.take))
        app.router.add_get(f"{base}/job-take-batch/{{worker}}", self._guarded("job-take", self.take_batch))
        app.router.add_get(f"{base}/job-stop/{{worker}}", self._guarded("job-stop", self.stop))
        app.router.add_get(f"{base}/ping/{{worker}}", self._guarded("ping", self.ping))
        app.router.add_post(f"{base}/job-done/{{worker}}/{{job}}", self._guarded("job-done", self.done))
        app.router.add_post(f"{base}/job-stream/{{worker}}/{{job}}", self._guarded("job-stream", self.stream))

    def _guarded(self, route: str, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.Response:
            if request.headers.get("Authorization") != self._api_key:
                return self._rejected(request, 401, "Authorization must be the API key itself, without Bearer")
            fault = self._faults.on_arrival(route, request)
            if fault is not None and fault.hang_up_after == "before":
                if (struck := await strike(fault, request)) is not None:
                    return struck
                fault = None
            self._store.seen(request.match_info["worker"], now())
            response = await handler(request)
            # Without a fault nothing is awaited between here and the write, so no job goes to a connection known dead.
            if fault is None and response.status == 200:
                fault = self._faults.on_reply(route)
            struck = None if fault is None else await strike(fault, request)
            return response if struck is None else struck

        return guarded

    async def take(self, request: web.Request) -> web.Response:
        """GET job-take: one job as an object, or 204."""
        worker = request.match_info["worker"]
        self._store.asked(worker, now())
        taken = await self._exchange.take(worker, 1, partial(_is_gone, request))
        return _jobs_reply(taken[0].wire) if taken else web.Response(status=204)

    async def take_batch(self, request: web.Request) -> web.Response:
        """GET job-take-batch: 1 to batch_size jobs as a list, or 204."""
        worker = request.match_info["worker"]
        self._store.asked(worker, now())
        size = request.query.get("batch_size", "")
        if not size.isdecimal() or int(size) < 1:
            return self._rejected(request, 400, f"batch_size must be a positive integer, not {size!r}")
        taken = await self._exchange.take(worker, int(size), partial(_is_gone, request))
        return _jobs_reply(b"[" + b",".join(job.wire for job in taken) + b"]") if taken else web.Response(status=204)

    async def stop(self, request: web.Request) -> web.Response:
        """GET job-stop: ids of jobs that were cancelled or timed out, or 204."""
        stops = await self._exchange.stops(request.match_info["worker"], partial(_is_gone, request))
        return reply({"jobsToStop": stops}) if stops else web.Response(status=204)

    async def ping(self, request: web.Request) -> web.Response:
        """GET ping: a sign of life."""
        self._store.pinged(request.match_info["worker"], dict(request.query), now())
        return web.Response()

    async def done(self, request: web.Request) -> web.Response:
        """POST job-done: an answer or a progress update."""
        return await self._receive(
            request,
            lambda worker, job, body, at: self._store.post(
                worker, job, body, request.query.get("isStream") == "true", at
            ),
        )

    async def stream(self, request: web.Request) -> web.Response:
        """POST job-stream: one chunk of a generator's output."""
        return await self._receive(
            request,
            lambda worker, job, body, at: self._store.stream(worker, job, body.get("output", body)),
            CHUNK_LIMIT,
        )

    async def _receive(
        self,
        request: web.Request,
        record: Callable[[str, str, dict[str, Any], float], JobRecord],
        limit: int = BODY_LIMIT,
    ) -> web.Response:
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raw = None
        if raw is None or len(raw) > limit:
            return self._rejected(request, 413, f"the body is larger than {limit // MB} MB")
        at = now()  # to look into it is the emulator's own time, not the worker's
        try:
            record(request.match_info["worker"], request.match_info["job"], decode_object(raw), at)
        except NotJson as error:
            return self._rejected(request, 400, str(error), raw)
        except KeyError:
            return self._rejected(request, 404, f"there is no job {request.match_info['job']!r}", raw)
        return web.Response()

    def _rejected(self, request: web.Request, status: int, reason: str, body: bytes = b"") -> web.Response:
        self._store.reject(request.match_info["worker"], request.match_info.get("job", ""), reason, body)
        return refusal(status, reason)


def _is_gone(request: web.Request) -> bool:
    """Whether nobody would get the reply. A poll can be woken between the end of its request and its cancellation."""
    return request.transport is None or request.transport.is_closing()


def _jobs_reply(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


async def strike(fault: Fault, request: web.Request) -> web.Response | None:
    """Carry out a fault; None if it only slowed the request down."""
    if fault.delay_s > 0:
        await asyncio.sleep(fault.delay_s)
    if fault.hang_up:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()  # goes nowhere: aiohttp finds the connection closed and drops it
    if fault.status is None and fault.body is None:
        return None
    body = fault.body.encode() if isinstance(fault.body, str) else fault.body
    return web.Response(status=fault.status or 200, body=body, content_type=fault.content_type)
