"""Waiting: the asyncio shell around the job store.

Here live long polls, waits for an answer and the one timer for deadlines. No HTTP. Whoever waits is woken by a change,
never by asking again.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable

from .jobs import JobStore
from .records import STOPPED, JobRecord, Status

now = time.perf_counter


class Line:
    """Coroutines in line for one event each, first come, first served."""

    def __init__(self) -> None:
        self._tickets: dict[asyncio.Future[bool], None] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._tickets)

    async def wait(self, timeout_s: float) -> bool:
        """True when woken, False after `timeout_s` seconds or when the line is closed."""
        if self._closed or timeout_s <= 0:
            return False
        loop = asyncio.get_running_loop()
        ticket: asyncio.Future[bool] = loop.create_future()
        self._tickets[ticket] = None
        timer = loop.call_later(timeout_s, self._settle, ticket, False)
        try:
            return await ticket
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled() and ticket.result():
                self.wake()  # it was ours and we are gone: the next in line gets it
            raise
        finally:
            timer.cancel()
            self._tickets.pop(ticket, None)

    def wake(self) -> None:
        """Let the first one go."""
        for ticket in self._tickets:
            if not ticket.done():
                self._settle(ticket, True)
                return

    def wake_all(self) -> None:
        """Let everyone go."""
        for ticket in list(self._tickets):
            self._settle(ticket, True)

    def close(self) -> None:
        """Send everyone away empty-handed, now and from now on."""
        self._closed = True
        for ticket in list(self._tickets):
            self._settle(ticket, False)

    def _settle(self, ticket: asyncio.Future[bool], woken: bool) -> None:
        self._tickets.pop(ticket, None)
        if not ticket.done():
            ticket.set_result(woken)


class Exchange:
    """One endpoint's store together with everyone who waits on it; lives on one event loop.

    long_poll_s: how long a request for jobs and one on the stop channel are held open, in seconds.
    on_end: called with each job that reaches a final status.
    """

    def __init__(
        self,
        *,
        long_poll_s: float,
        worker_timeout_s: float | None = None,
        keep_finished: int | None = None,
        on_end: Callable[[JobRecord], None] | None = None,
    ) -> None:
        self.store = JobStore(worker_timeout_s=worker_timeout_s, keep_finished=keep_finished, on_change=self._changed)
        self.takers = Line()
        self._long_poll_s = long_poll_s
        self._on_end = on_end
        self._stops: defaultdict[str, Line] = defaultdict(Line)
        self._watchers: dict[str, Line] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._closed = False

    def open(self) -> None:
        """Bind to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._arm()

    def close(self) -> None:
        """End every wait, each as if its time were up."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for line in (self.takers, *self._stops.values(), *self._watchers.values()):
            line.close()

    def submit(self, payload: object, keys: dict[str, object], job_id: str | None = None) -> JobRecord:
        """Queue a job and wake a poll. Raises what `JobStore.submit` raises."""
        record = self.store.submit(payload, keys, job_id, now())
        self._arm()
        return record

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a job unless it is finished. Raises KeyError for an unknown job."""
        return self.store.cancel(job_id, now())

    async def take(self, worker_id: str, count: int, is_gone: Callable[[], bool] = lambda: False) -> list[JobRecord]:
        """Up to `count` jobs, as soon as there is one; empty when the long poll is over, or when the caller `is_gone`.

        Nothing is awaited after the jobs are chosen, so a caller that is cancelled while it waits loses none.
        """
        deadline = now() + self._long_poll_s
        while not is_gone():
            if taken := self.store.take(worker_id, count, now()):
                self._arm()
                return taken
            if not await self.takers.wait(deadline - now()):
                return []
        self.takers.wake()  # it may have been woken for a job: the next in line gets it
        return []

    async def stops(self, worker_id: str, is_gone: Callable[[], bool] = lambda: False) -> list[str]:
        """The ids that the worker should stop, as soon as there is one; empty when the poll is over, as in `take`."""
        deadline = now() + self._long_poll_s
        while not is_gone():
            if stops := self.store.pop_stops(worker_id, now()):
                return stops
            if self._closed or not await self._stops[worker_id].wait(deadline - now()):
                return []
        self._stops[worker_id].wake()
        return []

    async def finished(self, record: JobRecord, timeout_s: float) -> bool:
        """Whether the job reaches a final status within `timeout_s` seconds."""
        deadline = now() + timeout_s
        while not record.finished:
            if not await self._change(record, deadline - now()):
                break
        return record.finished

    async def next_chunks(self, record: JobRecord, timeout_s: float) -> list[object]:
        """The chunks that no client has fetched yet; waits up to `timeout_s` seconds for one, or for the job's end."""
        deadline = now() + timeout_s
        while not record.finished and len(record.chunks) == record.streamed:
            if not await self._change(record, deadline - now()):
                break
        fresh = record.chunks[record.streamed :]
        record.streamed = len(record.chunks)
        return fresh

    async def _change(self, record: JobRecord, timeout_s: float) -> bool:
        if self._closed:
            return False
        line = self._watchers.setdefault(record.id, Line())
        try:
            return await line.wait(timeout_s)
        finally:
            if not line and self._watchers.get(record.id) is line:
                del self._watchers[record.id]

    def _changed(self, record: JobRecord) -> None:
        if record.status is Status.IN_QUEUE:
            self.takers.wake()
        elif record.finished:
            if record.status in STOPPED and record.worker_id is not None and record.worker_id in self._stops:
                self._stops[record.worker_id].wake()
            if self._on_end is not None:
                self._on_end(record)
        if (watchers := self._watchers.get(record.id)) is not None:
            watchers.wake_all()

    def _arm(self) -> None:
        due = self.store.next_deadline()
        if due is None or self._loop is None or self._closed:
            return
        if self._timer is not None:
            if self._timer_at <= due:
                return  # it looks again when it fires: signs of life only ever move a deadline back
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_later(max(0.0, due - now()), self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.store.expire(now())
        self._arm()
