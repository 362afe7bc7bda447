"""Many clients of one emulated endpoint: they send jobs and keep what each one's answer took.

They live on the emulator's own event loop, so that no hop between threads lies between an answer and the next job.
Times are the emulator's: from the moment a job is queued to the moment its answer has arrived.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self

from benchmarks.emulator import Emulator, EmulatorThread, FarEmulatorThread, JobRecord, Status
from benchmarks.measure import percentile

Json = dict[str, Any]

_KEPT_JOBS = 1000  # of the finished ones; each holds its answer, and a long run must not fill the memory with them
_GRACE_S = 60.0  # without any answer, when a measurement is over and some are still out


@dataclass
class Answers:
    """What one measurement saw: how long it ran, ms from submission to answer, and the errors of jobs that failed."""

    seconds: float = 0.0
    ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    """Of jobs that were sent in time and answered after the end: no part of the rate, but of the percentiles, which
    would know nothing of the slowest without them."""
    errors: list[str] = field(default_factory=list)

    def add(self, record: JobRecord, since: float, is_late: bool = False) -> None:
        """Keep the answer of a job that was to be sent at `since`, in seconds on the emulator's clock."""
        assert record.done is not None
        if record.status is Status.COMPLETED:
            (self.late_ms if is_late else self.ms).append((record.done - since) * 1e3)
        else:
            self.errors.append(str(record.error or record.status))

    def summary(self) -> dict[str, float]:
        """Figures by name; rates count the jobs that were answered within the measurement."""
        every = self.ms + self.late_ms
        return {
            "jobs": len(self.ms),
            "jobs_per_s": len(self.ms) / self.seconds if self.ms else 0.0,
            "p50_ms": percentile(every, 50),
            "p90_ms": percentile(every, 90),
            "p99_ms": percentile(every, 99),
            "max_ms": max(every, default=math.nan),
            "errors": len(self.errors),
        }


class Clients:
    """An emulated endpoint with its clients; a context manager. Its workers are `rtt_s` seconds of round trip away.

    A loop raises RuntimeError when, after its end, answers are still missing and none comes for _GRACE_S seconds.
    """

    def __init__(self, rtt_s: float = 0.0) -> None:
        settings: Json = {"on_end": self._ended, "keep_finished": _KEPT_JOBS}
        self.emulator = FarEmulatorThread(rtt_s, **settings) if rtt_s else EmulatorThread(**settings)
        self._answered: dict[str, Callable[[JobRecord], None]] = {}
        self._last_answer = -math.inf

    def __enter__(self) -> Self:
        self.emulator.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.emulator.__exit__(kind, error, trace)

    def closed_loop(self, clients: int, seconds: float, payloads: Iterator[Json]) -> Answers:
        """`clients` that each send a job when their last one is answered, for `seconds`; then waits for the last ones.

        `Answers.seconds` ends with the last of them: a worker with one answer a second has 1 a second in 4.9 s as well.
        """
        answers, begin = Answers(), time.perf_counter()

        def start(emulator: Emulator) -> None:
            for _ in range(clients):
                self._send(emulator, next(payloads), partial(answered, emulator))

        def answered(emulator: Emulator, record: JobRecord) -> None:
            assert record.done is not None
            is_late = record.done >= begin + seconds
            answers.add(record, record.submitted, is_late)
            if not is_late:
                answers.seconds = record.done - begin
                self._send(emulator, next(payloads), partial(answered, emulator))

        self._measure(start, seconds)
        return answers

    def open_loop(self, arrivals: Iterable[float], payloads: Iterator[Json]) -> Answers:
        """Jobs sent at `arrivals` (seconds from the start, ascending), whether or not earlier ones were answered.

        A job's time runs from its arrival as planned: were the sender itself late, that would count as well.
        """
        answers, planned = Answers(), deque(arrivals)
        begin = time.perf_counter()

        def arrive(emulator: Emulator) -> None:
            while planned and begin + planned[0] <= time.perf_counter():
                self._send(emulator, next(payloads), partial(answers.add, since=begin + planned[0]))
                planned.popleft()  # only now: when nothing is unsent, all that was sent is on the list
            if planned:
                wait = max(0.0, begin + planned[0] - time.perf_counter())
                asyncio.get_running_loop().call_later(wait, arrive, emulator)

        self._measure(arrive, planned[-1] if planned else 0.0, planned)
        answers.seconds = time.perf_counter() - begin
        return answers

    def one_by_one(
        self, count: int, payloads: Iterator[Json], *, pause_s: float = 0.0, timeout_s: float = _GRACE_S
    ) -> Answers:
        """`count` jobs that each find an idle worker, `pause_s` seconds after the last answer.

        Raises TimeoutError when an answer takes longer than `timeout_s` seconds.
        """
        answers, begin = Answers(), time.perf_counter()
        for _ in range(count):
            time.sleep(pause_s)
            record = self.emulator.wait(self.emulator.submit(next(payloads)), timeout_s)
            answers.add(record, record.submitted)
        answers.seconds = time.perf_counter() - begin
        return answers

    def _measure(self, start: Callable[[Emulator], None], seconds: float, unsent: Sized = ()) -> None:
        """Run `start` on the emulator's loop; return when `seconds` are over, all is sent and no answer is out."""
        deadline = time.perf_counter() + seconds
        self.emulator.call(start)
        time.sleep(max(0.0, deadline - time.perf_counter()))
        while unsent or self._answered:  # in this order, see open_loop
            if time.perf_counter() > max(deadline, self._last_answer) + _GRACE_S:
                jobs = len(self._answered)
                raise RuntimeError(f"{jobs} jobs were not answered, and no answer came for {_GRACE_S:g} s")
            time.sleep(0.005)

    def _send(self, emulator: Emulator, payload: Json, answered: Callable[[JobRecord], None]) -> None:
        self._answered[emulator.submit(payload).id] = answered

    def _ended(self, record: JobRecord) -> None:
        """On the emulator's loop, with each job that ends."""
        if record.id in self._answered:
            # Not at once: first the worker gets its reply.
            asyncio.get_running_loop().call_soon(self._settle, record)

    def _settle(self, record: JobRecord) -> None:
        self._last_answer = time.perf_counter()
        self._answered[record.id](record)
        del self._answered[record.id]  # only now: what it sent next is on the list already


def embed_jobs(texts: Iterable[str]) -> Iterator[Json]:
    """The payload of a job for each text."""
    return ({"text": text} for text in texts)
