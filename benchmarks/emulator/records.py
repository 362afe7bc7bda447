"""What the emulator remembers: one record per job and per worker.

Here live plain data and what can be read off it. The steps that change it are in jobs.py.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Json = dict[str, Any]

KEPT_PINGS = 1000  # a soak pings for hours; the count goes on, the queries are kept for the last ones


class Status(StrEnum):
    """Where a job stands, in the platform's words."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


STOPPED = (Status.CANCELLED, Status.TIMED_OUT)
"""The ends of a job that its worker is told of."""


@dataclass(slots=True, frozen=True)
class Post:
    """One POST to job-done, as it was received."""

    body: Json
    is_stream: bool
    worker_id: str
    at: float  # seconds
    accepted: bool  # False: the job was finished, or another worker holds it; such a post changes nothing

    @property
    def final(self) -> bool:
        """Whether this answers the job; a progress update does not."""
        return self.body.get("status") != Status.IN_PROGRESS


@dataclass(slots=True, frozen=True)
class Rejection:
    """A worker's request that was refused: who sent it, for which job ("" where the route names none), and why."""

    worker_id: str
    job_id: str
    reason: str
    body: bytes  # as received, at most its first 1,000 bytes


@dataclass(slots=True, eq=False)
class JobRecord:
    """One job from submission to answer. Times are in seconds on the emulator's clock (`time.perf_counter`)."""

    id: str
    input: Any
    keys: Json  # what came beside `input` (webhook, policy, ...) and reaches the handler
    wire: bytes  # the job as a worker receives it; emptied once the job is finished
    submitted: float
    status: Status = Status.IN_QUEUE
    output: Any = None
    error: Any = None
    chunks: list[Any] = field(default_factory=list)  # what the worker streamed, without the {"output": ...} around it
    streamed: int = 0  # how many chunks a client has fetched
    progress: list[Any] = field(default_factory=list)
    worker_id: str | None = None  # who holds it, or who held it last
    attempts: int = 0  # times handed out
    posts: list[Post] = field(default_factory=list)
    taken: float | None = None  # handed out, the last time
    done: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the status is final."""
        return self.done is not None

    @property
    def answers(self) -> list[Post]:
        """The posts that answer the job: a correct worker sends exactly one (none if the job was cancelled)."""
        return [post for post in self.posts if post.final]

    @property
    def queue_ms(self) -> float:
        """Submission to the last hand-out, or to the end of a job that nobody took, in ms; 0 while it waits."""
        left_queue = self.taken if self.taken is not None else self.done
        return 0.0 if left_queue is None else (left_queue - self.submitted) * 1e3

    @property
    def run_ms(self) -> float:
        """The last hand-out to the end, in ms; 0 before the end."""
        return 0.0 if self.taken is None or self.done is None else (self.done - self.taken) * 1e3


@dataclass(slots=True, eq=False)
class WorkerRecord:
    """What is known of one worker. Times are in seconds on the emulator's clock."""

    id: str
    last_seen: float  # its last request of any kind
    first_take: float | None = None
    takes: int = 0  # requests for a job, answered with one or not
    ping_count: int = 0
    pings: deque[Mapping[str, str]] = field(default_factory=lambda: deque(maxlen=KEPT_PINGS))  # their queries
    unhealthy: Mapping[str, str] | None = None  # the query of a ping that reported a failed fitness check
    jobs: dict[str, JobRecord] = field(default_factory=dict)  # in progress
    stops: list[str] = field(default_factory=list)  # ids that its stop channel has still to deliver
