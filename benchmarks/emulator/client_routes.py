"""The routes that a client uses.

Here a client's requests become calls on the exchange, and records become replies. No state lives here.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from .exchange import Exchange, now
from .records import JobRecord, Status
from .replies import BODY_LIMIT, MB, NotJson, decode_object, refusal, reply

Handler = Callable[[web.Request], Awaitable[web.Response]]

RUN_LIMIT = 10 * MB  # bytes of a request's body, https://docs.runpod.io/serverless/endpoints/operation-reference
DEFAULT_WAIT_MS = 90_000  # ibid.
LONGEST_WAIT_MS = 300_000  # ibid.
OPENAI_WAIT_S = 300.0
PRESENT_S = 60.0  # a worker silent for longer is left out of health's counts


class ClientRoutes:
    """The routes a client uses, behind the API key (sent as `Bearer KEY`, or raw as RunPod's own examples do)."""

    def __init__(self, exchange: Exchange, endpoint_id: str, api_key: str, stream_poll_s: float) -> None:
        self._exchange, self._store = exchange, exchange.store
        self._keys = (f"Bearer {api_key}", api_key)
        self._base = f"/v2/{endpoint_id}"
        self._stream_poll_s = stream_poll_s

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        for method, path, handler in (
            ("POST", "/run", self.run),
            ("POST", "/runsync", self.runsync),
            ("GET", "/status/{job}", self.status),
            ("POST", "/status/{job}", self.status),
            ("GET", "/stream/{job}", self.stream),
            ("POST", "/stream/{job}", self.stream),
            ("POST", "/cancel/{job}", self.cancel),
            ("POST", "/purge-queue", self.purge),
            ("GET", "/health", self.health),
            ("*", "/openai/{path:.*}", self.openai),
        ):
            app.router.add_route(method, self._base + path, self._guarded(handler))

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.Response:
            if request.headers.get("Authorization") not in self._keys:
                return refusal(401, "Authorization must be 'Bearer' and the API key")
            try:
                return await handler(request)
            except NotJson as error:
                return refusal(400, str(error))
            except web.HTTPRequestEntityTooLarge:
                return refusal(413, f"the body is larger than {BODY_LIMIT // MB} MB")

        return guarded

    async def run(self, request: web.Request) -> web.Response:
        """POST run: queue a job, answer with its id."""
        raw = await request.read()
        if len(raw) > RUN_LIMIT:
            return refusal(413, f"the body is larger than {RUN_LIMIT // MB} MB; runsync takes {BODY_LIMIT // MB} MB")
        record = self._submit(decode_object(raw))
        return reply({"id": record.id, "status": record.status})

    async def runsync(self, request: web.Request) -> web.Response:
        """POST runsync: queue a job, answer with its result, or with its status after `wait` ms."""
        wait = request.query.get("wait", str(DEFAULT_WAIT_MS))
        if not wait.isdecimal():
            return refusal(400, f"wait must be a number of milliseconds, not {wait!r}")
        record = self._submit(decode_object(await request.read()))
        await self._exchange.finished(record, min(int(wait), LONGEST_WAIT_MS) / 1e3)
        return reply(view(record))

    async def status(self, request: web.Request) -> web.Response:
        """GET status: where the job stands, and its output."""
        record = self._store.jobs.get(request.match_info["job"])
        return _no_job(request) if record is None else reply(view(record))

    async def stream(self, request: web.Request) -> web.Response:
        """GET stream: the chunks that were not fetched yet; held open briefly while there are none."""
        record = self._store.jobs.get(request.match_info["job"])
        if record is None:
            return _no_job(request)
        chunks = await self._exchange.next_chunks(record, self._stream_poll_s)
        return reply({"status": record.status, "stream": [{"output": chunk} for chunk in chunks]})

    async def cancel(self, request: web.Request) -> web.Response:
        """POST cancel: end the job wherever it is; a finished job stays as it is."""
        try:
            record = self._exchange.cancel(request.match_info["job"])
        except KeyError:
            return _no_job(request)
        return reply({"id": record.id, "status": record.status})

    async def purge(self, request: web.Request) -> web.Response:
        """POST purge-queue: cancel what is queued, leave what is in progress."""
        return reply({"removed": self._store.purge(now()), "status": "completed"})

    async def health(self, request: web.Request) -> web.Response:
        """GET health: how many jobs and workers are in which state."""
        jobs = self._store.counts()
        return reply(
            {
                "jobs": {
                    "completed": jobs[Status.COMPLETED],
                    "failed": jobs[Status.FAILED] + jobs[Status.TIMED_OUT],
                    "inProgress": jobs[Status.IN_PROGRESS],
                    "inQueue": jobs[Status.IN_QUEUE],
                    "retried": self._store.requeued,
                },
                "workers": self._worker_counts(),
            }
        )

    async def openai(self, request: web.Request) -> web.Response:
        """ANY openai/v1/...: a job with the route and the body as its input; the reply is the bare output.

        Of an output that is a list it is the first item; chunks of a stream are not sent on as server-sent events.
        """
        raw = await request.read()
        route = f"/{request.match_info['path']}"
        payload = {"openai_route": route, "openai_input": decode_object(raw) if raw else {}}
        record = self._submit({"input": payload})
        if not await self._exchange.finished(record, OPENAI_WAIT_S):
            return refusal(504, f"job {record.id} was not answered within {OPENAI_WAIT_S:g} s")
        if record.status is not Status.COMPLETED:
            return reply({"error": record.error if record.error is not None else str(record.status)}, 500)
        output = record.output
        return reply(output[0] if isinstance(output, list) and output else output)

    def _submit(self, body: Mapping[str, Any]) -> JobRecord:
        if "input" not in body:
            raise NotJson("the body must have a key 'input'")
        keys = {key: value for key, value in body.items() if key not in ("id", "input")}
        try:
            return self._exchange.submit(body["input"], keys)
        except ValueError as error:
            raise NotJson(str(error)) from error

    def _worker_counts(self) -> dict[str, int]:
        present = [worker for worker in self._store.workers.values() if now() - worker.last_seen < PRESENT_S]
        healthy = [worker for worker in present if worker.unhealthy is None]
        ready = [worker for worker in healthy if worker.first_take is not None]
        running = sum(bool(worker.jobs) for worker in ready)
        return {
            "idle": len(ready) - running,
            "initializing": len(healthy) - len(ready),
            "ready": len(ready),
            "running": running,
            "throttled": 0,
            "unhealthy": len(present) - len(healthy),
        }


def view(record: JobRecord) -> dict[str, Any]:
    """A job as the status route shows it; times in whole ms."""
    shown: dict[str, Any] = {"id": record.id, "status": record.status}
    if record.taken is not None:
        shown |= {"delayTime": round(record.queue_ms), "workerId": record.worker_id}
    if record.finished:
        shown["executionTime"] = round(record.run_ms)
    if record.status is Status.COMPLETED or record.output is not None:
        shown["output"] = record.output
    elif record.status is Status.IN_PROGRESS and record.progress:
        shown["output"] = record.progress[-1]
    if record.error is not None:
        shown["error"] = record.error
    return shown


def _no_job(request: web.Request) -> web.Response:
    return refusal(404, f"there is no job {request.match_info['job']!r}")
