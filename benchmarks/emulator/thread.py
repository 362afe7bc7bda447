"""The endpoint in a thread of its own, for code that is not async."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

import uvloop

from .faults import Fault
from .records import JobRecord, Rejection, WorkerRecord
from .server import Emulator

T = TypeVar("T")


class EmulatorThread:
    """An Emulator in a thread with its own event loop, for code that is not async; a context manager.

    Takes Emulator's settings. What `jobs` and `workers` show may change while it is read.
    """

    def __init__(self, **settings: Any) -> None:
        self.emulator = Emulator(**settings)
        self._thread = threading.Thread(target=self._run, name="emulator", daemon=True)
        self._listening = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._failure: Exception | None = None
        self._running: set[asyncio.Future[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    @property
    def url(self) -> str:
        """See Emulator.url."""
        return self.emulator.url

    @property
    def endpoint_url_base(self) -> str:
        """See Emulator.endpoint_url_base."""
        return self.emulator.endpoint_url_base

    @property
    def endpoint_id(self) -> str:
        """See Emulator."""
        return self.emulator.endpoint_id

    @property
    def api_key(self) -> str:
        """See Emulator."""
        return self.emulator.api_key

    @property
    def jobs(self) -> Mapping[str, JobRecord]:
        """See Emulator.jobs."""
        return self.emulator.jobs

    @property
    def workers(self) -> Mapping[str, WorkerRecord]:
        """See Emulator.workers."""
        return self.emulator.workers

    @property
    def rejected(self) -> Sequence[Rejection]:
        """See Emulator.rejected."""
        return self.emulator.rejected

    def worker_env(self, worker_id: str = "worker-1", *, ping_interval_ms: int = 4000) -> dict[str, str]:
        """See Emulator.worker_env."""
        return self.emulator.worker_env(worker_id, ping_interval_ms=ping_interval_ms)

    def submit(self, payload: Any, **keys: Any) -> JobRecord:
        """See Emulator.submit."""
        return self.call(lambda emulator: emulator.submit(payload, **keys))

    def wait(self, job: str | JobRecord, timeout_s: float = 30.0) -> JobRecord:
        """See Emulator.wait."""
        return self._result(lambda: self.emulator.wait(job, timeout_s))

    def cancel(self, job: str | JobRecord) -> JobRecord:
        """See Emulator.cancel."""
        return self.call(lambda emulator: emulator.cancel(job))

    def inject(self, route: str, fault: Fault, times: int | None = 1) -> None:
        """See Faults.add."""
        self.call(lambda emulator: emulator.faults.add(route, fault, times))

    def call(self, function: Callable[[Emulator], T]) -> T:
        """What `function` returns when it is run with the emulator on its own loop."""

        async def run() -> T:
            return function(self.emulator)

        return self._result(run)

    def _result(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `start` comes to. The loop calls it: a coroutine of this thread's may be left unawaited by Ctrl-C."""
        if self._loop is None:
            raise RuntimeError("the emulator is not running: use it inside `with EmulatorThread() as emulator:`")
        result: Future[T] = Future()

        async def run() -> None:
            try:
                result.set_result(await start())
            except BaseException as error:
                result.set_exception(error)

        def begin() -> None:
            task = asyncio.ensure_future(run())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

        self._loop.call_soon_threadsafe(begin)
        return result.result()

    def _run(self) -> None:
        # Not asyncio's own loop: what serves takes CPU time from whatever is measured beside it.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            await self.emulator.start()
        except Exception as error:
            self._failure = error
            self._listening.set()
            return
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._listening.set()
        try:
            await self._stopping.wait()
        finally:
            self._loop = None
            await self.emulator.stop()
