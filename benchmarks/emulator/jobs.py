"""The job store: every step a job can take from one status to the next.

Rule: no clock, no socket, no asyncio here. Every `now` is seconds on one monotonic clock of the caller's. What changes
is announced through one callback; whoever waits for a change is the caller's worry.
"""

import heapq
import json
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .records import STOPPED, JobRecord, Json, Post, Rejection, Status, WorkerRecord

KEPT_REJECTIONS = 1000


class _Deadline(NamedTuple):
    at: float
    number: int  # breaks ties, so that heapq never compares further
    job_id: str
    attempt: int  # 0: the job's lifetime; else the hand-out whose run time ends
    reason: str


class JobStore:
    """All jobs and workers of one endpoint.

    worker_timeout_s: a worker silent for longer has its jobs put back at the head of the queue (None: never).
    keep_finished: how many finished jobs to remember, the oldest are forgotten first (None: all).
    on_change: called after a job was queued, got progress or a chunk, or finished.
    """

    def __init__(
        self,
        *,
        worker_timeout_s: float | None = None,
        keep_finished: int | None = None,
        on_change: Callable[[JobRecord], None] = lambda record: None,
    ) -> None:
        self.jobs: dict[str, JobRecord] = {}
        self.workers: dict[str, WorkerRecord] = {}
        self.finished: Counter[Status] = Counter()  # by final status; goes on counting what is forgotten
        self.requeued = 0
        self.rejected: deque[Rejection] = deque(maxlen=KEPT_REJECTIONS)
        self._worker_timeout_s = worker_timeout_s
        self._keep_finished = keep_finished
        self._on_change = on_change
        self._queue: OrderedDict[str, JobRecord] = OrderedDict()
        self._done: deque[str] = deque()
        self._deadlines: list[_Deadline] = []
        self._deadline_number = 0

    def submit(self, payload: Any, keys: Json, job_id: str | None, now: float) -> JobRecord:
        """Queue a job. Raises TypeError or ValueError if it isn't JSON, its id is in use or its policy is malformed."""
        _policy_ms(keys, "executionTimeout")
        ttl_ms = _policy_ms(keys, "ttl")
        job_id = job_id or f"{uuid.uuid4()}-u1"
        if job_id in self.jobs:
            raise ValueError(f"a job with id {job_id!r} exists already")
        job = {**keys, "id": job_id, "input": payload}
        try:
            wire = json.dumps(job, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:  # half a surrogate pair, which JSON can only write with a backslash
            wire = json.dumps(job, allow_nan=False).encode()
        record = JobRecord(job_id, payload, keys, wire, submitted=now)
        self.jobs[job_id] = self._queue[job_id] = record
        if ttl_ms is not None:
            self._watch(now + ttl_ms / 1e3, job_id, 0, f"not answered within its ttl of {ttl_ms:.0f} ms")
        self._on_change(record)
        return record

    def seen(self, worker_id: str, now: float) -> WorkerRecord:
        """Note a sign of life, of a new worker too."""
        worker = self.workers.get(worker_id)
        if worker is None:
            worker = self.workers[worker_id] = WorkerRecord(worker_id, last_seen=now)
        worker.last_seen = now
        return worker

    def asked(self, worker_id: str, now: float) -> None:
        """Note a request for jobs."""
        worker = self.seen(worker_id, now)
        worker.takes += 1
        if worker.first_take is None:
            worker.first_take = now

    def pinged(self, worker_id: str, query: Mapping[str, str], now: float) -> None:
        """Note a ping."""
        worker = self.seen(worker_id, now)
        worker.ping_count += 1
        worker.pings.append(query)
        worker.unhealthy = query if query.get("status") == "unhealthy" else None

    def take(self, worker_id: str, count: int, now: float) -> list[JobRecord]:
        """Hand out up to `count` jobs, the longest queued first."""
        taken: list[JobRecord] = []
        while self._queue and len(taken) < count:
            _, record = self._queue.popitem(last=False)
            worker = self.seen(worker_id, now)
            worker.jobs[record.id] = record
            record.status, record.worker_id, record.taken = Status.IN_PROGRESS, worker_id, now
            record.attempts += 1
            if (limit_ms := _policy_ms(record.keys, "executionTimeout")) is not None:
                reason = f"not answered within its executionTimeout of {limit_ms:.0f} ms"
                self._watch(now + limit_ms / 1e3, record.id, record.attempts, reason)
            taken.append(record)
        return taken

    def post(self, worker_id: str, job_id: str, body: Json, is_stream: bool, now: float) -> JobRecord:
        """Take a worker's answer or progress update. Raises KeyError for an unknown job."""
        record = self.jobs[job_id]
        accepted = record.status is Status.IN_PROGRESS and record.worker_id == worker_id
        post = Post(body, is_stream, worker_id, now, accepted)
        record.posts.append(post)
        if not accepted:
            return record
        if not post.final:
            record.progress.append(body.get("output"))
            self._on_change(record)
            return record
        record.output, record.error = body.get("output"), body.get("error")
        self._finish(record, Status.COMPLETED if record.error is None else Status.FAILED, now)
        return record

    def stream(self, worker_id: str, job_id: str, chunk: Any) -> JobRecord:
        """Take a streamed chunk; one that comes after the end is dropped. Raises KeyError for an unknown job."""
        record = self.jobs[job_id]
        if record.status is Status.IN_PROGRESS and record.worker_id == worker_id:
            record.chunks.append(chunk)
            self._on_change(record)
        return record

    def cancel(self, job_id: str, now: float) -> JobRecord:
        """Cancel a job unless it is finished. Raises KeyError for an unknown job."""
        record = self.jobs[job_id]
        if not record.finished:
            self._finish(record, Status.CANCELLED, now)
        return record

    def purge(self, now: float) -> int:
        """Cancel all that is queued; returns how many jobs that were."""
        queued = list(self._queue.values())
        for record in queued:
            self._finish(record, Status.CANCELLED, now)
        return len(queued)

    def pop_stops(self, worker_id: str, now: float) -> list[str]:
        """The ids that the worker should stop, each handed over once."""
        worker = self.seen(worker_id, now)
        stops, worker.stops = worker.stops, []
        return stops

    def reject(self, worker_id: str, job_id: str, reason: str, body: bytes = b"") -> None:
        """Remember a refused request."""
        self.rejected.append(Rejection(worker_id, job_id, reason, body[:1000]))

    def next_deadline(self) -> float | None:
        """When `expire` may have something to do next, in seconds, or None."""
        while self._deadlines and not self._stands(self._deadlines[0]):
            heapq.heappop(self._deadlines)
        first = [self._deadlines[0].at] if self._deadlines else []
        if self._worker_timeout_s is not None:
            first += [worker.last_seen + self._worker_timeout_s for worker in self.workers.values() if worker.jobs]
        return min(first, default=None)

    def expire(self, now: float) -> None:
        """End what ran out of time and put back the jobs of silent workers."""
        while self._deadlines and self._deadlines[0].at <= now:
            deadline = heapq.heappop(self._deadlines)
            if self._stands(deadline):
                record = self.jobs[deadline.job_id]
                record.error = deadline.reason
                self._finish(record, Status.TIMED_OUT, now)
        if self._worker_timeout_s is not None:
            for worker in self.workers.values():
                if worker.jobs and worker.last_seen + self._worker_timeout_s <= now:
                    self._requeue(worker)

    def counts(self) -> dict[Status, int]:
        """How many jobs are, or ended, in each status."""
        running = sum(len(worker.jobs) for worker in self.workers.values())
        return {status: self.finished[status] for status in Status} | {
            Status.IN_QUEUE: len(self._queue),
            Status.IN_PROGRESS: running,
        }

    def _finish(self, record: JobRecord, status: Status, now: float) -> None:
        if record.status is Status.IN_QUEUE:
            del self._queue[record.id]
        elif record.worker_id is not None:
            worker = self.workers[record.worker_id]
            del worker.jobs[record.id]
            if status in STOPPED:
                worker.stops.append(record.id)
        record.status, record.done, record.wire = status, now, b""
        self.finished[status] += 1
        if self._keep_finished is not None:
            self._done.append(record.id)
            while len(self._done) > self._keep_finished:
                del self.jobs[self._done.popleft()]
        self._on_change(record)

    def _requeue(self, worker: WorkerRecord) -> None:
        lost, worker.jobs = list(worker.jobs.values()), {}
        for record in reversed(lost):  # the oldest ends up first
            record.status, record.worker_id, record.taken = Status.IN_QUEUE, None, None
            record.chunks, record.streamed, record.progress = [], 0, []  # the next attempt starts over
            self._queue[record.id] = record
            self._queue.move_to_end(record.id, last=False)
        self.requeued += len(lost)
        for record in lost:
            self._on_change(record)

    def _watch(self, at: float, job_id: str, attempt: int, reason: str) -> None:
        self._deadline_number += 1
        heapq.heappush(self._deadlines, _Deadline(at, self._deadline_number, job_id, attempt, reason))

    def _stands(self, deadline: _Deadline) -> bool:
        record = self.jobs.get(deadline.job_id)
        if record is None or record.finished:
            return False
        return deadline.attempt == 0 or (record.status is Status.IN_PROGRESS and record.attempts == deadline.attempt)


def _policy_ms(keys: Json, name: str) -> float | None:
    policy = keys.get("policy")
    if policy is None:
        return None
    if not isinstance(policy, dict):
        raise ValueError(f"policy must be an object, not {policy!r}")
    limit = policy.get(name)
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int | float) or limit <= 0:
        raise ValueError(f"policy.{name} must be a positive number of milliseconds, not {limit!r}")
    return float(limit)
