"""What the worker answers over HTTP on a load-balancing endpoint, which has no queue: routes, and bodies of both ways.

Paths are those of a queue endpoint's clients, so that the same client speaks to either: `/runsync`, and OpenAI's below
`/v1` or `/openai/v1`. RunPod asks `/ping`, or what HEALTH_CHECK_PATH names.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Protocol, TypeAlias
from uuid import uuid4

from aiohttp import web

from engine.errors import InvalidInput, Overloaded, WorkerError
from handler.aggregate import END
from handler.counts import Counts
from handler.options import asks, is_health
from handler.reply import ERROR, body_of_error, encode, too_late
from handler.web.bodies import Bodies
from handler.web.replies import (
    TooLate,
    TooSlow,
    error_in,
    failed,
    json_reply,
    object_in,
    openai_failed,
    openai_reply,
    status_by,
    status_of,
    without_stop,
)

MOST_WAITING = 512
"""Requests, beside those that are answered; as many as Text Embeddings Inference takes at once."""
WRITE_TIMEOUT_S = 60.0
"""In which a client takes some of what is sent to it, or its connection ends, and with it the work for it."""

_Route: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Engine(Protocol):
    """What answers jobs: handler/processes/engine_client.py."""

    async def handle(self, job: dict[str, Any]) -> bytes:
        """The body of the reply to `job`, which may lose its input."""
        ...

    def stream(self, job: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """Those of its parts, then the last one."""
        ...


class Routes:
    """Turns requests into jobs for `engine`, at most `most` at a time, and its bodies into replies.

    Others wait their turn. `health` is what `GET /health` tells, unless that is `ping_path`, where `/ping` is answered
    as well. Every request is answered, and who is told to retry is not kept waiting for it. `on_refresh` is called for
    each body that asks for a fresh worker.
    """

    def __init__(
        self,
        engine: Engine,
        health: Callable[[], Awaitable[dict[str, Any]]],
        *,
        most: int,
        timeout_s: float = 0.0,
        ping_path: str = "/ping",
        debug: bool = False,
        on_refresh: Callable[[], None] = lambda: None,
    ) -> None:
        self.is_ready = self.is_stopping = False
        self.open = self.running = 0
        """Requests whose reply is not sent yet, and those of them that the engine works on."""
        self.idle = asyncio.Event()
        """Set while there are none of the former."""
        self.idle.set()
        self.counts = Counts()
        self._engine = engine
        self._health = health
        self._room = asyncio.Semaphore(most)
        self._bodies = Bodies()
        self._most_open = most + MOST_WAITING
        self._timeout_s = timeout_s or None
        self._ping_path = ping_path
        self._debug = debug
        self._on_refresh = on_refresh

    def ping_app(self) -> web.Application:
        """What listens on PORT_HEALTH, where that is another port."""
        app = web.Application()
        for path in dict.fromkeys(("/ping", self._ping_path)):
            app.router.add_get(path, self.ping)
        return app

    def app(self) -> web.Application:
        """What listens on PORT."""
        app = self.ping_app()
        if self._ping_path != "/health":
            app.router.add_get("/health", self.health)
        app.router.add_post("/runsync", self._sent(self.runsync))
        for base in ("/v1", "/openai/v1"):
            app.router.add_route("*", base + "/{route:.+}", self._sent(self.openai))
        return app

    def stop(self) -> None:
        """Take nothing more; those that wait for a place, or would have to, are told so at once."""
        self.is_ready, self.is_stopping = False, True
        self._bodies.stop()

    def give_up(self) -> None:
        """Do not wait for bodies any more. What the engine has is not ours to end."""
        self._bodies.give_up()

    def _sent(self, route: _Route) -> _Route:
        """`route`, whose requests are open until the kernel has all of the reply: else the end of it dies with us."""

        async def answer(request: web.Request) -> web.StreamResponse:
            if request.transport is not None:
                _watch(request.transport)
            self.open += 1
            self.idle.clear()
            try:
                reply = await route(request)
                if not reply.prepared and self.is_stopping:
                    reply.force_close()
                with suppress(ConnectionError):  # the client has gone, as aiohttp is about to find as well
                    await reply.prepare(request)
                    await reply.write_eof()
                    if isinstance(reply, web.Response):  # aiohttp holds it until the connection's next request
                        reply.body = None
                return reply
            finally:
                self.open -= 1
                if not self.open:
                    self.idle.set()

        return answer

    async def ping(self, request: web.Request) -> web.Response:
        """200 when it can be asked, 204 while it starts; what RunPod's balancer goes by."""
        if self.is_stopping:
            return json_reply(b"", 503)
        return web.Response(status=200 if self.is_ready else 204)

    async def health(self, request: web.Request) -> web.Response:
        """The report of docs/api.md."""
        try:
            self._refuse_unless_ready()
            return json_reply(encode(await self._health()))
        except WorkerError as error:
            return failed({}, status_of(error), error.sentence())

    async def runsync(self, request: web.Request) -> web.StreamResponse:
        """A job as a queue endpoint takes it; its reply, or with `"stream": true` a line of JSON for each part."""
        job_id = str(uuid4())
        try:
            async with self._place(request) as raw:
                job = object_in(raw, 'a job, {"input": {...}}') | {"id": job_id}
                raw.clear()
                if job.get("input") is None:
                    raise InvalidInput("the job has no `input`")
                if asks(job, "stream"):
                    return await self._stream(request, job)
                if is_health(job):
                    body = encode({"output": await self._health()})
                else:
                    body = await self._answer(job)
                    self.counts.ended(body.startswith(ERROR))
        except WorkerError as error:
            return self._failed(job_id, error)
        if body.startswith(ERROR):
            return _failed_job(job_id, error_in(body))
        return json_reply(b'{"id":"%s","status":"COMPLETED",%s' % (job_id.encode(), body[1:]))

    async def openai(self, request: web.Request) -> web.Response:
        """What a queue endpoint answers below `/openai`: the reply in OpenAI's form, errors included."""
        route = "/v1/" + request.match_info["route"]
        try:
            async with self._place(request) as raw:
                payload = object_in(raw, "a request of OpenAI's form") if raw else {}
                raw.clear()
                job = {"id": str(uuid4()), "input": {"openai_route": route, "openai_input": payload}}
                body = await self._answer(job)
                self.counts.ended(body.startswith(ERROR))
        except WorkerError as error:
            self.counts.ended(failed=True)
            return openai_failed(status_of(error), self._sentence(error))
        if body.startswith(ERROR):
            return openai_failed(status_by(error_in(body)), error_in(body))
        return json_reply(openai_reply(body))

    @asynccontextmanager
    async def _place(self, request: web.Request) -> AsyncIterator[bytearray]:
        """The body of `request`, which has one of the places as soon as that is here. Raises WorkerError."""
        self._refuse_unless_ready()
        if self.open > self._most_open:  # this one is
            raise Overloaded(f"{MOST_WAITING} requests wait already")
        try:
            async with self._bodies.of(request) as raw, self._bodies.waiting():
                await self._room.acquire()
        except (TimeoutError, TooSlow):
            self._refuse_unless_ready()
            raise
        try:
            yield raw
        finally:
            self._room.release()

    def _refuse_unless_ready(self) -> None:
        if not self.is_ready:
            raise Overloaded("the worker is shutting down" if self.is_stopping else "the worker is starting")

    async def _answer(self, job: dict[str, Any]) -> bytes:
        """The body that a queue endpoint's loop would post, but for what is meant for the queue. Raises WorkerError."""
        async with self._limit():
            return self._without_stop(await self._engine.handle(job))

    def _without_stop(self, body: bytes) -> bytes:
        if (plain := without_stop(body)) is not body:
            self._on_refresh()
        return plain

    async def _stream(self, request: web.Request, job: dict[str, Any]) -> web.StreamResponse:
        """Parts as they come, without the end. Until there is one, what fails has a status of its own."""
        reply = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        is_failed = ends = False
        if request.version < (1, 1):  # knows no chunks: the end of the connection is that of the reply
            reply.force_close()
        try:
            async with self._limit(), aclosing(self._engine.stream(job)) as bodies:
                async for one in bodies:
                    body = self._without_stop(one)
                    if ends:  # it was a part, whose answer is an empty list
                        await reply.write(END + b"\n")
                    if ends := reply.prepared and body == END:
                        continue
                    if not reply.prepared:
                        if body.startswith(ERROR):
                            self.counts.ended(failed=True)
                            return _failed_job(job["id"], error_in(body))
                        await reply.prepare(request)
                    is_failed = body.startswith(ERROR)
                    await reply.write(body + b"\n")
                    if is_failed:
                        break
        except WorkerError as error:
            if not reply.prepared:
                raise
            is_failed = True
            held = END + b"\n" if ends else b""
            await reply.write(held + encode(body_of_error(error, debug=self._debug)) + b"\n")
        except ConnectionError:  # the client has gone
            return reply
        self.counts.ended(is_failed)
        return reply

    @asynccontextmanager
    async def _limit(self) -> AsyncIterator[None]:
        limit = asyncio.timeout(self._timeout_s)
        self.running += 1
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise TooLate(str(too_late(self._timeout_s or 0.0))) from None
        finally:
            self.running -= 1

    def _sentence(self, error: WorkerError) -> str:
        return str(body_of_error(error, debug=self._debug)["error"])

    def _failed(self, job_id: str, error: WorkerError) -> web.Response:
        self.counts.ended(failed=True)
        return failed({"id": job_id, "status": "FAILED"}, status_of(error), self._sentence(error))


def _watch(transport: asyncio.Transport) -> None:
    """A write ends when the kernel has all of it, which ends a connection whose other end takes nothing."""
    transport.set_write_buffer_limits(high=0)
    with suppress(OSError):  # it has ended already
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_TIMEOUT_S * 1e3))


def _failed_job(job_id: str, sentence: str) -> web.Response:
    return failed({"id": job_id, "status": "FAILED"}, status_by(sentence), sentence)
