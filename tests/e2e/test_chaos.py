"""Chaos: whatever breaks, every job ends answered once and rightly, or is still the platform's to hand out again.

The worker is a process, and everything here is seen and done from outside it. What goes wrong follows from seeds; how
requests fall together in time does not, and no assertion depends on it.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import psutil
import pytest

from benchmarks.emulator import EmulatorThread, Fault, JobRecord
from benchmarks.worker_process import WorkerProcess
from engine.backends.fake import FakeEngine
from engine.batching.feed import run_rows
from engine.bundle import open_bundle
from engine.config import Settings
from engine.tasks import load_task
from tests.bundles import toy_tokenizer, write_small_bundle

JOBS = 2000
WORKER_TIMEOUT_S = 2.0  # a worker that is silent for longer loses its jobs; a live one pings every second
MAX_CONCURRENCY = 32
LOST = ("worker fault: the engine", "overloaded, please retry: ")  # what a job is told when its engine is gone
OURS = (sys.executable, "-m", "handler")
CHAOS_WORKER = (sys.executable, str(Path(__file__).with_name("chaos_worker.py")))
POISON = "fox"  # no ordinary text holds it
POISON_ID = str(toy_tokenizer().token_to_id(POISON))
WORDS = sorted(word for word in toy_tokenizer().get_vocab() if word.isalnum() and word != POISON)


class Job(NamedTuple):
    id: str
    input: dict[str, Any]
    answer: Any
    """(texts, dimension): what the engine gives for these texts when each runs alone; None where nobody asks."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("chaos") / "bundle")


@pytest.fixture(scope="module")
def jobs(bundle: Path) -> list[Job]:
    """Jobs of one to three texts, no two with the same answer, so that one that goes to the wrong job is seen."""
    opened = open_bundle(bundle)
    task, engine = load_task(opened, Settings()), FakeEngine.from_bundle(opened)
    draw, seen = random.Random(0), set()
    made: list[Job] = []
    while len(made) < JOBS:
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 28))) for _ in range(draw.randint(1, 3))]
        payload: dict[str, Any] = {"text": texts[0]} if len(texts) == 1 else {"texts": texts}
        request = task.parse(payload)
        reply = task.postprocess(request, [run_rows(engine, [row])[0] for row in task.preprocess(request)])
        answer = vectors(reply)
        if (key := answer.round(3).tobytes()) not in seen:
            seen.add(key)
            made.append(Job(f"job-{len(made)}", payload, answer))
    return made


def vectors(output: Any) -> Any:
    return np.array(output["embeddings"] if "embeddings" in output else [output["embedding"]], np.float32)


def right(output: Any, answer: Any) -> bool:
    if answer is None:
        return True
    found = vectors(output)
    return found.shape == answer.shape and bool(np.allclose(found, answer, atol=1e-6))


def poisoned(jobs: Sequence[Job], every: int) -> tuple[list[Job], set[str]]:
    """`jobs`, of which each `every`-th gets the poison into one more text, and the ids of those."""
    mixed, ids = list(jobs), set()
    for index in range(every // 2, len(jobs), every):
        job = jobs[index]
        texts = job.input.get("texts") or [job.input["text"]]
        mixed[index] = Job(job.id, {"texts": [*texts, f"{POISON} {texts[-1]}"]}, None)
        ids.add(job.id)
    return mixed, ids


class Platform:
    """The endpoint, the workers that it starts, and what became of the jobs."""

    def __init__(self, emulator: EmulatorThread, bundle: Path, log: Path) -> None:
        self.emulator = emulator
        self.workers: list[WorkerProcess] = []
        self.records: list[JobRecord] = []
        self._jobs: list[Job] = []
        self._bundle = bundle
        self._stack = ExitStack()
        self._log = self._stack.enter_context(log.open("a"))

    def worker_id(self, number: int) -> str:
        return f"chaos-{os.getpid()}-{id(self)}-{number}"

    def environ(self, number: int, url: str | None = None, **env: str) -> dict[str, str]:
        """What makes a process the worker of that number; `url` stands before the endpoint."""
        ours = self.emulator.worker_env(self.worker_id(number), ping_interval_ms=1000)
        ours = {name: value.replace(self.emulator.url, url or self.emulator.url) for name, value in ours.items()}
        ours |= {"RUNPOD_LOG_LEVEL": "INFO", "MAX_CONCURRENCY": str(MAX_CONCURRENCY)}
        return {**ours, "BUNDLE": str(self._bundle), "ENGINE": "fake", **env}

    def start(self, command: Sequence[str] = OURS, *, url: str | None = None, **env: str) -> WorkerProcess:
        """A further worker, once it has asked for a job."""
        number = len(self.workers)
        environ = self.environ(number, url, **env)
        worker = WorkerProcess(self.emulator, command, environ, worker_id=self.worker_id(number), log=self._log)
        self.workers.append(self._stack.enter_context(worker))
        return worker

    def interrupted_start(self, number: int, after_s: float) -> int:
        """The exit code of a worker that gets SIGTERM `after_s` seconds after it was started."""
        environ = {**os.environ, **self.environ(number)}
        process = subprocess.Popen(OURS, env=environ, stdout=self._log, stderr=subprocess.STDOUT)
        try:
            time.sleep(after_s)
            process.terminate()
            return process.wait(60)
        finally:
            process.kill()
            process.wait()

    def submit(self, jobs: Sequence[Job], then: Callable[[], None] = lambda: None) -> list[JobRecord]:
        """Queue `jobs` at once; `then` runs before the first of them can leave."""

        def on_loop(emulator: Any) -> list[JobRecord]:
            records = [emulator.submit(job.input, job_id=job.id) for job in jobs]
            then()
            return records

        records = self.emulator.call(on_loop)
        self._jobs += jobs
        self.records += records
        return records

    def wait_for(self, records: Sequence[JobRecord]) -> None:
        for record in records:
            self.emulator.wait(record, 60)

    def settle(self) -> None:
        """End the faults and the workers, and let a fresh worker answer what they left. No process may remain."""
        for worker in self.workers:
            if worker.process.poll() is None:
                _end(worker)
        self.emulator.call(lambda emulator: emulator.faults.clear())
        if not all(record.finished for record in self.records):
            last = self.start()
            self.wait_for(self.records)
            _end(last)
        until(lambda: not self.processes())

    def processes(self) -> list[psutil.Process]:
        """All that live of the workers and of what they started, whoever their parent is by now."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("RUNPOD_POD_ID", "").startswith(f"chaos-{os.getpid()}-{id(self)}-")
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                pass  # gone meanwhile, or somebody else's
        return found

    def abandoned(self) -> list[str]:
        """Jobs that the platform believes to be with a worker, asked when no worker runs: nobody will answer them."""
        return [record.id for record in self.records if record.status == "IN_PROGRESS"]

    def wrong(self, *may_end: str) -> list[str]:
        """Jobs that ended otherwise than `may_end` says, not exactly once, or with the answer of another job."""
        found = [f"refused: {rejection}" for rejection in self.emulator.rejected]
        for job, record in zip(self._jobs, self.records, strict=True):
            if record.status not in may_end:
                found.append(f"{job.id} ended {record.status}: {record.error}")
            if sum(post.accepted for post in record.answers) != (record.status in ("COMPLETED", "FAILED")):
                found.append(f"{job.id} is {record.status} with the answers {record.answers}")
            outputs = [post.body["output"] for post in record.answers if "output" in post.body]  # late ones as well
            found += [f"{job.id} got {output}, not {job.answer}" for output in outputs if not right(output, job.answer)]
        return found

    def repeated(self) -> Counter[str]:
        """By job, how many more answers than hand-outs there were."""
        return +Counter({record.id: len(record.answers) - record.attempts for record in self.records})

    def close(self) -> None:
        self._stack.close()
        for process in self.processes():
            process.kill()


def _end(worker: WorkerProcess) -> None:
    assert worker.stop(60) is not None
    assert worker.process.returncode == 0


@pytest.fixture
def start_platform(bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Platform]]:
    """Makes the endpoint; the last words of the workers are shown when the test fails."""
    log = tmp_path / "workers.log"
    with ExitStack() as stack:

        def start(worker_timeout_s: float | None = None) -> Platform:
            settings = {"long_poll_s": 2.0, "worker_timeout_s": worker_timeout_s}
            platform = Platform(stack.enter_context(EmulatorThread(**settings)), bundle, log)
            stack.callback(platform.close)
            return platform

        yield start
    print(log.read_text()[-4000:])


StartPlatform = Callable[..., Platform]


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.002)


def taken(records: Sequence[JobRecord]) -> int:
    return sum(record.attempts > 0 for record in records)


def queued(records: Sequence[JobRecord]) -> int:
    return sum(record.status == "IN_QUEUE" for record in records)


def trickle(platform: Platform, jobs: Sequence[Job], *, size: int = 100) -> None:
    """Submit in portions, so that workers take many times and are asked for one job as well as for a full load."""
    for begin in range(0, len(jobs), size):
        records = platform.submit(jobs[begin : begin + size])
        until(lambda records=records: queued(records) < 0.3 * size)  # type: ignore[misc]
    until(lambda: not queued(platform.records))


# The network and the platform


RESULT_FAULTS = (
    *(Fault(status=status) for status in (408, 429, 500, 502, 503)),
    Fault(status=500, body="<html>"),
    Fault(status=500, hang_up_after="after"),
    Fault(hang_up=True),
    Fault(hang_up=True, hang_up_after="after"),
    Fault(hang_up=True, hang_up_after="after", delay_s=0.05),
    Fault(delay_s=0.05),
)


class ResultFaults:
    """Strikes answers; which of a job's posts, and how, follows from its id."""

    def __init__(self, share: float) -> None:
        self.untold: Counter[str] = Counter()  # answers that were received without telling the worker
        self._share = share
        self._posts: Counter[str] = Counter()

    def __call__(self, route: str, request: Any) -> Fault | None:
        if route != "job-done":
            return None
        job_id = request.match_info["job"]
        self._posts[job_id] += 1
        draw = random.Random(f"{job_id} {self._posts[job_id]}")
        if draw.random() >= self._share:
            return None
        fault = draw.choice(RESULT_FAULTS)
        self.untold[job_id] += fault.hang_up_after == "after"
        return fault


def test_results_are_answered_500_or_hung_up_on(start_platform: StartPlatform, jobs: list[Job]):
    platform = start_platform()
    faults = platform.emulator.emulator.faults.choose = ResultFaults(0.3)
    platform.start()
    platform.wait_for(platform.submit(jobs))
    platform.settle()
    assert platform.wrong("COMPLETED") == []
    assert platform.repeated() <= faults.untold
    assert all(record.attempts == 1 for record in platform.records)
    assert platform.emulator.emulator.faults.struck["job-done"] > 400


def test_results_find_nobody_until_the_worker_is_gone(start_platform: StartPlatform, jobs: list[Job]):
    platform = start_platform(WORKER_TIMEOUT_S)
    platform.emulator.inject("job-done", Fault(hang_up=True), times=None)
    worker = platform.start(RESULT_TIMEOUT_S="1", DRAIN_TIMEOUT_S="1")
    platform.submit(jobs)
    until(lambda: platform.emulator.emulator.faults.struck["job-done"] > 0)
    _end(worker)
    assert not any(record.posts for record in platform.records)
    platform.emulator.call(lambda emulator: emulator.faults.clear())
    platform.settle()
    assert platform.wrong("COMPLETED") == []


GARBAGE: tuple[bytes | str, ...] = (
    "",
    "null",
    "7",
    '"text"',
    "<html><body>Bad gateway</body></html>",
    '[{"id": "job-1", "inp',
    "[" * 50_000,
    b"\xff\xfe\x00[",
    "[1, null, [], {}]",
    '[{"input": {"text": "a"}}]',
    '{"id": 5, "input": {"text": "a"}}',
    '{"id": "", "input": {"text": "a"}}',
    '[{"id": null, "input": null}]',
    b" " * 1_000_000,
)
TAKE_FAULTS = (
    *(Fault(status=status) for status in (204, 400, 404, 500, 502)),
    Fault(hang_up=True),
    *(Fault(body=body) for body in GARBAGE),
    *(Fault(body=body, content_type="text/html") for body in GARBAGE[:5]),
)


class TakeFaults:
    """Strikes takes: mostly ones that find no job then, some by which jobs are handed out unseen."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._draw = random.Random(2)

    def __call__(self, route: str, request: Any) -> Fault | None:
        if route != "job-take" or self._draw.random() >= self._share:
            return None
        if self._draw.random() < 0.1:
            return Fault(body=self._draw.choice(GARBAGE), hang_up=self._draw.random() < 0.5, hang_up_after="after")
        return self._draw.choice(TAKE_FAULTS)


def test_takes_are_answered_with_garbage(start_platform: StartPlatform, jobs: list[Job]):
    """Jobs that were handed out under garbage stay unseen: they are the platform's again when the worker is gone."""
    platform = start_platform(WORKER_TIMEOUT_S)
    platform.emulator.emulator.faults.choose = TakeFaults(0.4)
    platform.start()
    trickle(platform, jobs)
    platform.settle()
    assert platform.wrong("COMPLETED") == []
    assert not platform.repeated()
    assert any(record.attempts > 1 for record in platform.records)


class CuttingProxy:
    """Forwards TCP and cuts each connection after so many bytes, wherever in a request or a reply that is."""

    def __init__(self, target: str, *, mean_bytes: float) -> None:
        self.cuts = 0
        self.url = ""
        self._host, self._port = target.removeprefix("http://").split(":")
        self._mean_bytes = mean_bytes
        self._connections = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="proxy", daemon=True)
        self._listening = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._listening.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections += 1
        draw, ends = random.Random(self._connections), [writer]
        try:
            there, back = await asyncio.open_connection(self._host, self._port)
            ends.append(back)
            await asyncio.gather(self._pump(reader, back, ends, draw), self._pump(there, writer, ends, draw))
        except OSError:
            pass  # the worker or the endpoint went away
        finally:
            for end in ends:
                end.transport.abort()
            self._tasks.discard(task)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        ends: Sequence[asyncio.StreamWriter],
        draw: random.Random,
    ) -> None:
        left = 1 + int(draw.expovariate(1 / self._mean_bytes))
        while data := await source.read(65536):
            sink.write(data[:left])
            left -= len(data)
            if left <= 0:
                self._cut(ends, reset=draw.random() < 0.5)
                return
            await sink.drain()
        sink.write_eof()

    def _cut(self, ends: Sequence[asyncio.StreamWriter], *, reset: bool) -> None:
        self.cuts += 1
        for end in ends:
            if reset:  # RST instead of FIN
                linger = struct.pack("ii", 1, 0)
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            end.transport.abort()


def test_connections_are_cut_in_the_middle(start_platform: StartPlatform, jobs: list[Job]):
    platform = start_platform(WORKER_TIMEOUT_S)
    with CuttingProxy(platform.emulator.url, mean_bytes=20_000) as proxy:
        platform.start(url=proxy.url)
        trickle(platform, jobs)
        platform.settle()
    assert platform.wrong("COMPLETED") == []
    assert platform.repeated().total() <= proxy.cuts  # after a cut behind the request nobody knows; it is sent again
    assert proxy.cuts > 20
    assert any(record.attempts > 1 for record in platform.records)


# The worker's end


def test_sigterm_at_random_moments(start_platform: StartPlatform, jobs: list[Job]):
    """Nothing is lost and nothing has to be handed out again, wherever in its work the signal finds a worker."""
    platform, draw, size = start_platform(), random.Random(4), JOBS // 8
    worker = platform.start()
    for begin in range(0, JOBS, size):
        successor = platform.start()
        pid, share = worker.process.pid, jobs[begin : begin + size]
        if begin % (2 * size):
            records = platform.submit(share)
            moment = draw.randrange(size)
            until(lambda: taken(records) > moment)  # noqa: B023
            os.kill(pid, signal.SIGTERM)
        else:  # in the instant in which an idle worker is handed jobs
            platform.submit(share, lambda: os.kill(pid, signal.SIGTERM))  # noqa: B023
        worker = successor
    for worker in platform.workers:
        if worker is platform.workers[-1]:
            until(lambda: not queued(platform.records))
            worker.process.terminate()
        assert worker.process.wait(60) == 0
    assert platform.abandoned() == []
    platform.settle()
    assert platform.wrong("COMPLETED") == []
    assert all(record.attempts == len(record.answers) == 1 for record in platform.records)


def test_sigterm_during_the_boot(start_platform: StartPlatform, jobs: list[Job]):
    """And in the moments after it, under full load: the queue is long."""
    platform = start_platform()
    boot_s = platform.start().first_take_s
    platform.settle()
    platform.submit(jobs)
    for number in range(1, 11):
        assert platform.interrupted_start(number, boot_s * number / 9) in (0, -signal.SIGTERM)
        assert platform.abandoned() == []
    until(lambda: not platform.processes())  # nobody is left behind, not even one that was still loading
    platform.workers.clear()
    platform.settle()
    assert platform.wrong("COMPLETED") == []
    assert all(record.attempts == len(record.answers) == 1 for record in platform.records)


def test_sigkill(start_platform: StartPlatform, jobs: list[Job]):
    """Jobs of a killed worker are handed out again: no process of it lives on and pings for them."""
    platform, draw, size = start_platform(WORKER_TIMEOUT_S), random.Random(5), JOBS // 5
    worker = platform.start()
    for begin in range(0, JOBS, size):
        successor = platform.start()
        records = platform.submit(jobs[begin : begin + size])
        moment = draw.randrange(size)
        until(lambda: taken(records) > moment)  # noqa: B023
        worker.process.kill()
        worker = successor
    platform.wait_for(platform.records)
    platform.settle()
    assert platform.wrong("COMPLETED") == []
    assert not platform.repeated()
    assert any(record.attempts > 1 for record in platform.records)


def test_the_death_of_a_child_process(start_platform: StartPlatform, jobs: list[Job]):
    """The worker goes on without it; or it fails what it holds, ends, not with 0, and another one takes over.

    A job that is handed over in the instant of the death must not wait either, here for the end of an endless drain.
    """
    platform, draw, size = start_platform(WORKER_TIMEOUT_S), random.Random(6), JOBS // 8
    worker = platform.start(DRAIN_TIMEOUT_S="600")
    ended = 0
    for begin in range(0, JOBS, size):
        share, children = jobs[begin : begin + size], psutil.Process(worker.process.pid).children(recursive=True)

        def kill() -> None:
            if children:  # noqa: B023
                draw.choice(children).kill()  # noqa: B023

        if begin % (2 * size):
            records = platform.submit(share)
            moment = draw.randrange(size)
            until(lambda: taken(records) > moment)  # noqa: B023
            kill()
        else:
            kill()
            time.sleep(draw.uniform(0, 0.004))  # until the worker has heard of it, or not quite
            platform.submit(share)
        until(lambda: not queued(platform.records) or worker.process.poll() is not None)  # noqa: B023
        if children:
            try:
                ended += worker.process.wait(20) != 0
            except subprocess.TimeoutExpired:
                assert all(record.finished for record in platform.records), "it neither ends nor goes on"
        if worker.process.poll() is not None:
            assert worker.process.returncode != 0
            worker = platform.start(DRAIN_TIMEOUT_S="600")
    platform.settle()
    assert platform.wrong("COMPLETED", "FAILED") == []
    failed = [record for record in platform.records if record.status == "FAILED"]
    assert len(failed) <= ended * MAX_CONCURRENCY
    assert all(record.error.startswith(LOST) for record in failed)
    assert not platform.repeated()


# Cancels


def test_cancel_storms(start_platform: StartPlatform, jobs: list[Job]):
    platform, draw = start_platform(), random.Random(7)
    platform.start(CHAOS_WORKER, CHAOS_SLEEP_MS="10", MAX_BATCH_ROWS="4")
    records = platform.submit(jobs[:-100])
    running: list[JobRecord] = []

    def storm(emulator: Any) -> None:
        for status in ("IN_QUEUE", "IN_PROGRESS"):
            there = [record for record in records if record.status == status]
            struck = draw.sample(there, len(there) // (8 if status == "IN_QUEUE" else 2))
            for record in struck:
                emulator.cancel(record)
                emulator.cancel(record)  # again, to no effect
            running.extend(struck if status == "IN_PROGRESS" else ())

    while queued(records):
        begin = taken(records)
        until(lambda: taken(records) > begin + 20 or not queued(records))  # noqa: B023
        platform.emulator.call(storm)
    platform.wait_for(records)
    platform.wait_for(platform.submit(jobs[-100:]))
    assert all(record.status == "COMPLETED" for record in platform.records[-100:])  # the worker is none the worse
    platform.settle()
    assert platform.wrong("COMPLETED", "CANCELLED") == []
    assert not platform.repeated()
    assert {record.status for record in records} == {"COMPLETED", "CANCELLED"}
    assert len(running) > 50
    assert sum(not record.posts for record in running) > len(running) / 2  # work was taken off it


# The engine


def test_an_engine_that_fails(start_platform: StartPlatform, jobs: list[Job]):
    """The jobs that it fails on fail; those that were batched with them do not."""
    platform = start_platform()
    mixed, ids = poisoned(jobs, 50)
    platform.start(CHAOS_WORKER, CHAOS_SLEEP_MS="5", CHAOS_RAISE=POISON_ID)  # a busy engine is given full batches
    platform.wait_for(platform.submit(mixed))
    platform.settle()
    assert platform.wrong("COMPLETED", "FAILED") == []
    failed = [record for record in platform.records if record.status == "FAILED"]
    assert {record.id for record in failed} == ids
    assert all(record.error.startswith("worker fault: ") for record in failed)
    assert all(record.attempts == len(record.answers) == 1 for record in platform.records)


def test_an_engine_that_hangs(start_platform: StartPlatform, jobs: list[Job]):
    """The worker fails what it holds and ends by itself, not with 0; others answer the rest."""
    platform = start_platform(WORKER_TIMEOUT_S)
    mixed, ids = poisoned(jobs, JOBS // 2)
    platform.submit(mixed)
    for _ in range(len(ids) + 1):
        worker = platform.start(CHAOS_WORKER, CHAOS_HANG=POISON_ID, ENGINE_TIMEOUT_S="1")
        until(lambda: worker.process.poll() is not None or all(record.finished for record in platform.records))  # noqa: B023
        if worker.process.poll() is None:
            break
        assert worker.process.returncode != 0
    ended = sum(worker.process.poll() is not None for worker in platform.workers)
    assert ended > 0
    platform.settle()
    assert platform.wrong("COMPLETED", "FAILED") == []
    failed = [record for record in platform.records if record.status == "FAILED"]
    assert len(failed) <= ended * MAX_CONCURRENCY
    assert all(record.error.startswith(LOST) for record in failed)
    told = r"worker fault: the engine did not end a batch of \d+ rows? up to \d+ long within 1 s .*; raise that where"
    assert any(re.match(told, record.error) for record in failed)
    assert not platform.repeated()


# All of it


def test_everything_at_once(start_platform: StartPlatform, jobs: list[Job]):
    platform, draw, size = start_platform(WORKER_TIMEOUT_S), random.Random(8), JOBS // 5
    mixed, _ = poisoned(jobs, 50)
    takes, results = TakeFaults(0.2), ResultFaults(0.2)
    platform.emulator.emulator.faults.choose = lambda route, request: takes(route, request) or results(route, request)
    with CuttingProxy(platform.emulator.url, mean_bytes=100_000) as proxy:

        def start(failure: str) -> WorkerProcess:
            return platform.start(
                CHAOS_WORKER, url=proxy.url, CHAOS_FLAKY="0.02", CHAOS_SLEEP_MS="2", **{failure: POISON_ID}
            )

        worker = start("CHAOS_RAISE")
        for begin in range(0, JOBS, size):
            successor = start(draw.choice(("CHAOS_RAISE", "CHAOS_NAN")))
            records = platform.submit(mixed[begin : begin + size])
            moment = draw.randrange(size)
            until(lambda: taken(records) > moment)  # noqa: B023
            for record in draw.sample(records, 40):
                platform.emulator.cancel(record)
            worker.process.send_signal(draw.choice((signal.SIGTERM, signal.SIGKILL)))
            worker = successor
        until(lambda: not queued(platform.records))
        for worker in platform.workers[:-1]:
            assert worker.process.wait(60) in (0, -signal.SIGKILL)
        platform.settle()
    assert platform.wrong("COMPLETED", "FAILED", "CANCELLED") == []
    ends = Counter(str(record.status) for record in platform.records)
    assert ends["CANCELLED"] <= 200
    assert all(
        record.error.startswith("worker fault: RuntimeError: chaos") or "NaN" in record.error
        for record in platform.records
        if record.status == "FAILED"
    )
    assert ends["COMPLETED"] > 1600
