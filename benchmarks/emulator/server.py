"""The endpoint as a server on the running event loop.

Here live sockets, start and stop, and the variables that point a worker here.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

from aiohttp import web

from .client_routes import ClientRoutes
from .exchange import Exchange
from .faults import Faults
from .records import JobRecord, Rejection, WorkerRecord
from .replies import BODY_LIMIT
from .worker_routes import WorkerRoutes

# A ping lists every job in progress in its query, up to the SDK's PING_MIRROR_CAPACITY of 65,536 bytes.
LONGEST_LINE = 128 * 1024
SHUTDOWN_S = 1.0  # for replies that are being written while the server stops
CLOCK_TICK_MS = 1000  # the SDK's Heartbeat cuts the interval to whole seconds, and 0 s breaks its ping process


class Emulator:
    """A RunPod queue endpoint on localhost; an async context manager.

    host, port: where to listen; port 0 picks a free one.
    long_poll_s, stream_poll_s: how long a request for jobs or on the stop channel, and a client's stream request are
        held open while there is nothing to answer, in seconds.
    worker_timeout_s: a worker that is silent for longer has its jobs put back at the head of the queue (None: never).
    keep_finished: how many finished jobs to remember (None: all); a later request for a forgotten one gets 404.
    on_end: called on the event loop with each job that reaches a final status.

    Policies (`executionTimeout`, `ttl`) are honoured, without the platform's lower bounds; a job without one has no
    limit. Webhooks reach the worker and are not called.
    """

    endpoint_id: ClassVar[str] = "EP"
    api_key: ClassVar[str] = "emulator"
    """What URLs and the Authorization header must carry."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        long_poll_s: float = 10.0,
        stream_poll_s: float = 1.0,
        worker_timeout_s: float | None = None,
        keep_finished: int | None = None,
        on_end: Callable[[JobRecord], None] | None = None,
    ) -> None:
        self.faults = Faults()
        self._exchange = Exchange(
            long_poll_s=long_poll_s,
            worker_timeout_s=worker_timeout_s,
            keep_finished=keep_finished,
            on_end=on_end,
        )
        self._host, self._port = host, port
        self._stream_poll_s = stream_poll_s
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Raises OSError if the port is taken."""
        app = web.Application(client_max_size=BODY_LIMIT)
        WorkerRoutes(self._exchange, self.faults, self.endpoint_id, self.api_key).add_to(app)
        ClientRoutes(self._exchange, self.endpoint_id, self.api_key, self._stream_poll_s).add_to(app)
        # handler_cancellation: a poll whose client is gone must end at once, or it would be handed the next job.
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=SHUTDOWN_S,
            max_line_size=LONGEST_LINE,
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port, backlog=1024).start()
        except OSError:
            await self._runner.cleanup()
            raise
        self._port = self._runner.addresses[0][1]
        self._exchange.open()

    async def stop(self) -> None:
        """End all polls and waits, close all connections. An emulator is not started twice."""
        self._exchange.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            await asyncio.sleep(0)  # lets the transports see their close

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """The server's address, without a path."""
        return f"http://{self._host}:{self._port}"

    @property
    def endpoint_url_base(self) -> str:
        """What `runpod.endpoint_url_base` and RUNPOD_ENDPOINT_BASE_URL must be for a client."""
        return f"{self.url}/v2"

    @property
    def jobs(self) -> Mapping[str, JobRecord]:
        """All jobs by id, in the order of submission."""
        return self._exchange.store.jobs

    @property
    def workers(self) -> Mapping[str, WorkerRecord]:
        """All workers that ever sent a request, by id."""
        return self._exchange.store.workers

    @property
    def rejected(self) -> Sequence[Rejection]:
        """The workers' requests that were refused (key, malformed body, unknown job), the last 1,000."""
        return self._exchange.store.rejected

    @property
    def waiting_polls(self) -> int:
        """How many requests for jobs are being held open."""
        return len(self._exchange.takers)

    def worker_env(self, worker_id: str = "worker-1", *, ping_interval_ms: int = 4000) -> dict[str, str]:
        """The variables that make a process a worker of this endpoint; set them before it starts.

        They also skip the SDK's own fitness checks, one of which connects to the internet. Raises ValueError for an
        interval below 1,000 ms.
        """
        if ping_interval_ms < CLOCK_TICK_MS:
            raise ValueError(f"ping_interval_ms must be at least {CLOCK_TICK_MS}, not {ping_interval_ms}")
        base = f"{self.endpoint_url_base}/{self.endpoint_id}"
        return {
            "RUNPOD_ENDPOINT_ID": self.endpoint_id,
            "RUNPOD_POD_ID": worker_id,
            "RUNPOD_AI_API_KEY": self.api_key,
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=emulated",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=emulated",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=emulated",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": str(ping_interval_ms),
            "RUNPOD_LOG_LEVEL": "ERROR",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def submit(self, payload: Any, *, job_id: str | None = None, **keys: Any) -> JobRecord:
        """Queue a job; `keys` (webhook, policy, ...) reach the handler beside `input`.

        Raises TypeError or ValueError if it is not JSON, its id is in use or its policy is malformed.
        """
        return self._exchange.submit(payload, keys, job_id)

    async def wait(self, job: str | JobRecord, timeout_s: float = 30.0) -> JobRecord:
        """The job, once it is finished. Raises TimeoutError, or KeyError for an unknown id."""
        record = job if isinstance(job, JobRecord) else self.jobs[job]
        if not await self._exchange.finished(record, timeout_s):
            raise TimeoutError(f"job {record.id} is {record.status} after {timeout_s:g} s")
        return record

    def cancel(self, job: str | JobRecord) -> JobRecord:
        """Cancel a job unless it is finished. Raises KeyError for an unknown id."""
        return self._exchange.cancel(job if isinstance(job, str) else job.id)
