"""What the worker answers over HTTP on a load-balancing endpoint, which has no queue: routes, and bodies of both ways.

Paths are those of a queue endpoint's clients, so that the same client speaks to either: `/runsync`, and OpenAI's below
`/v1` or `/openai/v1`. RunPod asks `/ping`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol
from uuid import uuid4

import orjson
from aiohttp import web

from engine.errors import InvalidInput, Overloaded, Unreachable, WorkerError, WorkerFault
from handler.aggregate import END
from handler.counts import Counts
from handler.options import asks, is_health
from handler.reply import ERROR, body_of_error, encode, too_late

LONGEST_BODY = 30 * 1024 * 1024
"""Bytes; RunPod's limit of a request, and of a reply, of these endpoints (its documentation)."""
MOST_WAITING = 512
"""Requests, beside those that are answered; as many as Text Embeddings Inference takes at once."""
READ_TIMEOUT_S = 60.0
"""For a body, which holds one of the places."""
_RETRY = {"Retry-After": "1"}


class _TooLate(WorkerFault):
    pass


class _TooLong(InvalidInput):
    pass


class _TooSlow(InvalidInput):
    pass


_KINDS = {_TooLate: 504, _TooLong: 413, _TooSlow: 408}
_STATUS = {InvalidInput.prefix: 400, Overloaded.prefix: 503, Unreachable.prefix: 503}
"""By whose fault it is; the worker's own are 500."""
_OPENAI_TYPES = {400: "invalid_request_error", 503: "overloaded_error"}


class Engine(Protocol):
    """What answers jobs: handler/engine_client.py."""

    async def handle(self, job: dict[str, Any]) -> bytes:
        """The body of `job`'s reply."""
        ...

    def stream(self, job: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """Those of its parts, then the last one."""
        ...


class Routes:
    """Turns requests into jobs for `engine`, at most `most` at a time, and its bodies into replies.

    Others wait their turn, unread. `health` is what `GET /health` tells. Every request is answered.
    """

    def __init__(
        self,
        engine: Engine,
        health: Callable[[], Awaitable[dict[str, Any]]],
        *,
        most: int,
        timeout_s: float = 0.0,
        debug: bool = False,
    ) -> None:
        self.is_ready = self.is_stopping = False
        self.open = self.running = 0
        """Requests that have no answer yet, and those of them that the engine has."""
        self.idle = asyncio.Event()
        """Set while there are none."""
        self.idle.set()
        self.counts = Counts()
        self._engine = engine
        self._health = health
        self._room = asyncio.Semaphore(most)
        self._most_open = most + MOST_WAITING
        self._timeout_s = timeout_s or None
        self._debug = debug

    def ping_app(self) -> web.Application:
        """What listens on PORT_HEALTH, where that is another port."""
        app = web.Application()
        app.router.add_get("/ping", self.ping)
        return app

    def app(self) -> web.Application:
        """What listens on PORT."""
        app = web.Application(client_max_size=LONGEST_BODY)
        app.router.add_get("/ping", self.ping)
        app.router.add_get("/health", self.health)
        app.router.add_post("/runsync", self.runsync)
        for base in ("/v1", "/openai/v1"):
            app.router.add_route("*", base + "/{route:.+}", self.openai)
        return app

    async def ping(self, request: web.Request) -> web.Response:
        """200 when it can be asked, 204 while it starts; what RunPod's balancer goes by."""
        return web.Response(status=503 if self.is_stopping else 200 if self.is_ready else 204)

    async def health(self, request: web.Request) -> web.Response:
        """The report of docs/api.md."""
        try:
            self._refuse_unless_ready()
            return _json(encode(await self._health()))
        except WorkerError as error:
            return _failed({}, _status(error.sentence()), error.sentence())

    async def runsync(self, request: web.Request) -> web.StreamResponse:
        """A job as a queue endpoint takes it; its reply, or with `"stream": true` a line of JSON for each part."""
        job_id = str(uuid4())
        try:
            async with self._place():
                job = _object(await _read(request), 'a job, {"input": {...}}') | {"id": job_id}
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
            return _failed({"id": job_id, "status": "FAILED"}, _status(_error(body)), _error(body))
        return _json(b'{"id":"%s","status":"COMPLETED",%s' % (job_id.encode(), body[1:]))

    async def openai(self, request: web.Request) -> web.Response:
        """What a queue endpoint answers below `/openai`: the reply in OpenAI's form, errors included."""
        route = "/v1/" + request.match_info["route"]
        try:
            async with self._place():
                raw = await _read(request)
                payload = _object(raw, "a request of OpenAI's form") if raw else {}
                job = {"id": str(uuid4()), "input": {"openai_route": route, "openai_input": payload}}
                body = await self._answer(job)
                self.counts.ended(body.startswith(ERROR))
        except WorkerError as error:
            self.counts.ended(failed=True)
            return _openai_failed(_status_of(error), self._sentence(error))
        if body.startswith(ERROR):
            return _openai_failed(_status(_error(body)), _error(body))
        output = orjson.loads(body).get("output")
        return _json(orjson.dumps(output[0] if isinstance(output, list) and output else output))

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """One among those that are worked on. Raises Overloaded."""
        self._refuse_unless_ready()
        if self.open >= self._most_open:
            raise Overloaded(f"{MOST_WAITING} requests wait already")
        self.open += 1
        self.idle.clear()
        try:
            async with self._room:
                self._refuse_unless_ready()
                self.running += 1
                try:
                    yield
                finally:
                    self.running -= 1
        finally:
            self.open -= 1
            if not self.open:
                self.idle.set()

    def _refuse_unless_ready(self) -> None:
        if not self.is_ready:
            raise Overloaded("the worker is shutting down" if self.is_stopping else "the worker is starting")

    async def _answer(self, job: dict[str, Any]) -> bytes:
        """The body that a queue endpoint's loop would post. Raises WorkerError."""
        async with self._limit():
            return await self._engine.handle(job)

    async def _stream(self, request: web.Request, job: dict[str, Any]) -> web.StreamResponse:
        """Parts as they come. Until there is one, what fails has a status of its own."""
        reply, failed = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"}), False
        try:
            async with self._limit(), aclosing(self._engine.stream(job)) as bodies:
                async for body in bodies:
                    if not reply.prepared:
                        if body.startswith(ERROR):
                            self.counts.ended(failed=True)
                            return _failed({"id": job["id"], "status": "FAILED"}, _status(_error(body)), _error(body))
                        await reply.prepare(request)
                    elif body == END:
                        break
                    failed = body.startswith(ERROR)
                    await reply.write(body + b"\n")
                    if failed:
                        break
        except WorkerError as error:
            if not reply.prepared:
                raise
            failed = True
            await reply.write(encode(body_of_error(error, debug=self._debug)) + b"\n")
        except ConnectionError:  # the client has gone
            return reply
        self.counts.ended(failed)
        await reply.write_eof()
        return reply

    @asynccontextmanager
    async def _limit(self) -> AsyncIterator[None]:
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise _TooLate(str(too_late(self._timeout_s or 0.0))) from None

    def _sentence(self, error: WorkerError) -> str:
        return str(body_of_error(error, debug=self._debug)["error"])

    def _failed(self, job_id: str, error: WorkerError) -> web.Response:
        self.counts.ended(failed=True)
        return _failed({"id": job_id, "status": "FAILED"}, _status_of(error), self._sentence(error))


async def _read(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _TooLong(f"the body has more than {LONGEST_BODY >> 20} MB; send less at once") from None
    except TimeoutError:
        raise _TooSlow(f"the body was not here within {READ_TIMEOUT_S:g} s") from None


def _status_of(error: WorkerError) -> int:
    return next((status for kind, status in _KINDS.items() if isinstance(error, kind)), _status(error.sentence()))


def _object(raw: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `raw`. Raises InvalidInput."""
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not JSON ({error}); send {what}") from None
    if not isinstance(found, dict):
        raise InvalidInput(f"the body is not an object; send {what}")
    return found


def _error(body: bytes) -> str:
    """The sentence in the body of a job that failed, which a task of one's own may write in its own way."""
    error = orjson.loads(body)["error"]
    return error if isinstance(error, str) else orjson.dumps(error).decode()


def _status(sentence: str) -> int:
    return next((status for prefix, status in _STATUS.items() if sentence.startswith(prefix)), 500)


def _failed(named: dict[str, Any], status: int, sentence: str) -> web.Response:
    return _json(encode({**named, "error": sentence}), status)


def _openai_failed(status: int, sentence: str) -> web.Response:
    error = {"message": sentence, "type": _OPENAI_TYPES.get(status, "server_error"), "param": None, "code": None}
    return _json(encode({"error": error}), status)


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(
        body=body, status=status, content_type="application/json", headers=_RETRY if status == 503 else None
    )
