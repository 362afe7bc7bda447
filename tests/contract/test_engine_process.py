"""What the worker's two processes say to each other, here at the two ends of a socket pair in one process."""

import asyncio
import gc
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent import futures
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from engine.batching.passage import Passage
from engine.batching.stats import Stats
from engine.config import Settings
from engine.errors import EngineError, InvalidInput, WorkerFault
from engine.tasks.base import Task
from engine.tensors import Arrays, Row
from handler.boot import Worker, boot
from handler.collector import MANY, _Kept
from handler.handler import Handler
from handler.parts import AHEAD
from handler.processes.engine_client import EngineClient
from handler.processes.engine_server import _Server
from handler.processes.frames import open_frames
from handler.startup.timeline import Timeline
from tests.loops import until

ROWS_OF_A_PART = 64


@pytest.fixture(autouse=True)
def _unfrozen() -> None:
    gc.unfreeze()


@asynccontextmanager
async def connected(worker: Worker) -> AsyncIterator[tuple[EngineClient, _Server]]:
    ours, theirs = socket.socketpair()
    server = _Server(worker)
    serving = asyncio.create_task(server.run(theirs))
    client = EngineClient(ours, lambda why: None)
    await client.start()
    yield client, server
    client.close()
    await serving


async def test_a_stream_that_is_taken_slowly_is_not_answered_further(small_bundle: Path):
    """Else the whole result would wait in memory for a platform that is slow."""
    worker = boot(Settings(bundle=small_bundle, engine="fake", max_items=20 * ROWS_OF_A_PART), Timeline())
    async with connected(worker) as (client, _):
        texts = ["a"] * (20 * ROWS_OF_A_PART)
        parts = client.stream({"id": "1", "input": {"texts": texts, "stream": True}})
        await anext(parts)
        served = -1
        while served < (served := worker.batcher.stats.rows):
            await asyncio.sleep(0.2)
        assert 0 < served <= (2 * AHEAD + 1) * ROWS_OF_A_PART < len(texts)
        assert len([part async for part in parts]) == 20
    worker.batcher.close()


async def test_a_stream_that_nobody_reads_any_more_is_not_answered_further(small_bundle: Path):
    worker = boot(Settings(bundle=small_bundle, engine="fake", max_items=20 * ROWS_OF_A_PART), Timeline())
    async with connected(worker) as (client, server):
        parts = client.stream({"id": "1", "input": {"texts": ["a"] * (20 * ROWS_OF_A_PART), "stream": True}})
        await anext(parts)
        assert server._tasks and server._room
        await parts.aclose()
        await until(lambda: not server._tasks)
        assert not (server._room or client._waiting or client._on_part)
    worker.batcher.close()


@pytest.mark.parametrize("other", ["engine_client", "engine_server"])
async def test_either_process_looks_for_cycles_once_its_last_large_job_has_ended(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, other: str
):
    monkeypatch.setattr(f"handler.processes.{other}.look_when_idle", lambda is_idle: None)
    monkeypatch.setattr("handler.collector._PAUSE_S", 0.0)
    worker = boot(Settings(bundle=small_bundle, engine="fake"), Timeline())
    async with connected(worker) as (client, _):
        await client.handle({"id": "1", "input": {"texts": [[] for _ in range(2 * MANY)]}})
        await until(lambda: not _Kept.count)
    worker.batcher.close()


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise KeyError("words")


FAILURES: dict[str, tuple[BaseException, str]] = {
    "end": (StopIteration(1), "RuntimeError: a thread raised StopIteration: 1"),
    "cancelled": (futures.CancelledError(), "RuntimeError: a thread raised CancelledError: "),
    "cancelled here": (asyncio.CancelledError(), "RuntimeError: a thread raised CancelledError: "),
    "unspeakable": (Unspeakable(), "Unspeakable (to say more failed with KeyError)"),
    "a panic": (type("Panic", (BaseException,), {})("of Rust's"), "Panic: of Rust's"),
}


class Failing:
    """A task that raises what its payload names, where it names it; `blocking`, so that it runs in threads."""

    blocking = True

    def parse(self, payload: list[str]) -> list[str]:
        return payload

    def _fail(self, where: str, payload: list[str]) -> None:
        if payload[1] == where:
            raise FAILURES[payload[0]][0]

    def preprocess(self, payload: list[str]) -> list[Row]:
        self._fail("preprocess", payload)
        return [Row({}, 1)]

    def postprocess(self, payload: list[str], outputs: object) -> str:
        self._fail("postprocess", payload)
        return "fine"


@asynccontextmanager
async def both_ends(handler: Handler) -> AsyncIterator[EngineClient]:
    worker = SimpleNamespace(
        handler=handler,
        batcher=Passage(Stats()),
        choices={},
        choice=SimpleNamespace(engine="none", reason=""),
        timeline=SimpleNamespace(stages={}),
    )
    async with connected(cast("Worker", worker)) as (client, _):
        yield client


async def answer(client: EngineClient, payload: object) -> dict[str, Any]:
    async with asyncio.timeout(10):
        found: dict[str, Any] = orjson.loads(await client.handle({"id": "1", "input": payload}))
    return found


@pytest.mark.parametrize("where", ["preprocess", "postprocess"])
@pytest.mark.parametrize("name", FAILURES)
async def test_whatever_a_task_raises_in_a_thread_its_job_gets_an_answer(name: str, where: str):
    task = cast("Task", Failing())
    async with both_ends(Handler(task, Passage(Stats()), dict)) as client:
        assert await answer(client, [name, where]) == {"error": f"worker fault: {FAILURES[name][1]}"}
        assert await answer(client, ["", ""]) == {"output": "fine"}


@pytest.mark.parametrize("where", ["preprocess", "postprocess"])
@pytest.mark.parametrize("name", FAILURES)
async def test_whatever_a_task_raises_on_the_event_loop_its_job_gets_an_answer(
    name: str, where: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Failing, "blocking", False)
    task = cast("Task", Failing())
    async with both_ends(Handler(task, Passage(Stats()), dict)) as client:
        assert (await answer(client, [name, where]))["error"].startswith("worker fault: ")
        assert await answer(client, ["", ""]) == {"output": "fine"}


async def test_an_answer_that_no_frame_holds_is_replaced_by_one_that_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handler.processes.frames._LENGTH", struct.Struct("<H"))  # 64 KiB in place of 4 GiB

    class Large(Failing):
        def postprocess(self, payload: list[str], outputs: object) -> str:
            return "x" * int(payload[0])

    async with both_ends(Handler(cast("Task", Large()), Passage(Stats()), dict)) as client:
        fault = "worker fault: the answer could not be made or passed on, the worker's log says why; ask for less"
        assert await answer(client, ["70000", ""]) == {"error": fault}
        assert await answer(client, ["1", ""]) == {"output": "x"}


async def test_a_job_that_no_other_process_can_be_given_is_refused():
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    async with both_ends(Handler(cast("Task", Failing()), Passage(Stats()), dict)) as client:
        with pytest.raises(InvalidInput, match="the job is nested too deeply"):
            await client.handle({"id": "1", "input": nested})
        assert await answer(client, ["", ""]) == {"output": "fine"}


async def test_half_a_character_is_refused_before_any_task_sees_it():
    async with both_ends(Handler(cast("Task", Failing()), Passage(Stats()), dict)) as client:
        assert (await answer(client, ["\ud800", ""]))["error"].startswith("invalid input: ")


# Jobs that nobody waits for any more


class Stuck(Passage):
    """Answers nobody until it is let go; `held` counts those that it holds."""

    def __init__(self) -> None:
        super().__init__(Stats())
        self.gate, self.held = asyncio.Event(), 0

    async def run(self, rows: Sequence[Row], on_rows_done: Callable[[int], None] | None = None) -> list[Arrays]:
        self.held += 1
        try:
            await self.gate.wait()
        finally:
            self.held -= 1
        return await super().run(rows, on_rows_done)


async def test_a_job_that_is_cancelled_is_worked_on_no_longer(capsys: pytest.CaptureFixture[str]):
    stuck = Stuck()
    async with both_ends(Handler(cast("Task", Failing()), stuck, dict)) as client:
        asking = asyncio.create_task(client.handle({"id": "1", "input": ["", ""]}))
        await until(lambda: stuck.held)
        asking.cancel()
        await until(lambda: not stuck.held)
        assert client._waiting == {}
        stuck.gate.set()
        assert await answer(client, ["", ""]) == {"output": "fine"}
        assert client._waiting == {}
    assert "ERROR" not in capsys.readouterr().out


@pytest.mark.parametrize("stream", [False, True])
async def test_a_job_that_the_engine_has_is_not_held_by_who_waits_for_it(stream: bool):
    ours, theirs = socket.socketpair()
    arrived = asyncio.Event()
    frames = await open_frames(theirs, lambda kind, number, job: arrived.set(), lambda: None)
    client = EngineClient(ours, lambda why: None)
    frames.send("ready", {}, {})
    await client.start()
    tracemalloc.start()
    try:
        job: dict[str, Any] = {"id": "1", "input": {"text": "a" * 4_000_000}}
        asking = asyncio.ensure_future(anext(client.stream(job)) if stream else client.handle(job))
        await arrived.wait()
        assert tracemalloc.get_traced_memory()[0] < 2_000_000
        assert job["id"] == "1"
    finally:
        tracemalloc.stop()
    asking.cancel()
    await asyncio.wait({asking})
    client.close()
    frames.close()


async def test_a_reply_that_comes_as_its_job_is_cancelled_costs_no_other_job_anything():
    stuck = Stuck()
    async with both_ends(Handler(cast("Task", Failing()), stuck, dict)) as client:
        asking = asyncio.create_task(client.handle({"id": "1", "input": ["", ""]}))
        await until(lambda: stuck.held)
        (number,) = client._waiting
        asking.cancel()
        client._on_frame("reply", number, b"{}")  # before the task has its turn
        await asyncio.wait({asking})
        assert asking.cancelled()
        stuck.gate.set()
        assert await answer(client, ["", ""]) == {"output": "fine"}


async def test_what_comes_for_a_job_that_has_ended_meanwhile_costs_the_others_nothing(small_bundle: Path):
    """Its answer may be on its way when it is cancelled, or when its last part is taken."""
    worker = boot(Settings(bundle=small_bundle, engine="fake"), Timeline())
    async with connected(worker) as (client, _):
        for kind in ("cancel", "room"):
            client._send(kind, 99, None)
        async with asyncio.timeout(10):
            assert b"embedding" in await client.handle({"id": "1", "input": {"text": "a"}})
    worker.batcher.close()


# A process that has ended, or hangs


async def test_whoever_comes_when_the_engines_process_has_ended_is_told():
    failures = list[str]()
    ours, theirs = socket.socketpair()
    client = EngineClient(ours, failures.append)
    starting = asyncio.create_task(client.start())
    await asyncio.sleep(0)
    theirs.close()
    with pytest.raises(WorkerFault, match="ended unexpectedly"):
        await starting
    async with asyncio.timeout(5):
        with pytest.raises(EngineError, match="ended unexpectedly"):
            await client.handle({"id": "1", "input": 1})
    client._on_frame("lost", 0, "gone")  # it had said so before
    assert failures == ["the engine's process ended unexpectedly"]


class Over(Exception):
    """No further steps."""


Step = tuple[float, list[tuple[Any, ...]]]
"""How long a pause of the watch takes, by a limit of 1 s, and what the engine's process says meanwhile."""

PAUSE_S = 0.25
SILENCE: Step = (PAUSE_S, [])
FROZEN: Step = (99.0, [])
FROZEN_AS_A_JOB_CAME: Step = (99.0, [("job",)])
IDLE: Step = (PAUSE_S, [])
A_JOB_CAME: Step = (PAUSE_S, [("job",)])
FROZEN_AS_IT_ASKS: Step = (PAUSE_S, [("pong", 0, 99.25, "1 row")])


def busy(seconds: float) -> Step:
    """The engine is at a batch for `seconds`."""
    return PAUSE_S, [("pong", 0, seconds, "1 row")]


def busy_since(seconds: float, count: int) -> list[Step]:
    return [busy(seconds + PAUSE_S * number) for number in range(count)]


WATCHED: dict[str, tuple[list[Step], str]] = {
    "it runs short batches": ([busy(0.1)] * 9, ""),
    "it answers late": ([SILENCE] * 3 + [busy(0.1)], ""),
    "it answers jobs, behind which the pings wait": ([(PAUSE_S, [("reply", 7, b"")])] * 9, ""),
    "it says nothing": ([SILENCE] * 9, "the engine did not answer within 1 s"),
    "it runs a long batch": (busy_since(0.0, 9), "the engine did not end a batch of 1 row within 1 s"),
    "it was idle before, and answers late": ([*[IDLE] * 9, A_JOB_CAME, *[SILENCE] * 3, busy(0.1)], ""),
    "it was idle before, and says nothing": ([*[IDLE] * 9, A_JOB_CAME, *[SILENCE] * 9], "did not answer within 1 s"),
    "both processes were frozen": ([busy(PAUSE_S), FROZEN, *busy_since(99.25, 3)], ""),
    "as soon as a job was there": ([FROZEN_AS_A_JOB_CAME, *busy_since(99.25, 3)], ""),
    "between two lines": ([busy(PAUSE_S), FROZEN_AS_IT_ASKS, *busy_since(99.5, 2)], ""),
    "and its batch does not end": ([busy(PAUSE_S), FROZEN, *busy_since(99.25, 8)], "did not end a batch of 1 row"),
}


@pytest.mark.parametrize("name", WATCHED)
async def test_a_time_in_which_the_engine_could_not_run_is_not_held_against_it(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    steps, said = WATCHED[name]
    now, left, failures = [100.0], list(steps), list[str]()
    ours, theirs = socket.socketpair()
    client = EngineClient(ours, failures.append)

    def send(*frame: Any) -> None:
        now[0] += FROZEN[0] if left and left[0] is FROZEN_AS_IT_ASKS else 0.0

    monkeypatch.setattr(client, "_send", send)
    client._started = asyncio.get_running_loop().create_future()
    client._started.set_result({})
    job = asyncio.get_running_loop().create_future()
    if FROZEN_AS_A_JOB_CAME not in left and A_JOB_CAME not in left:
        client._waiting[1] = job

    async def sleep(seconds: float) -> None:
        if not left or failures:
            raise Over
        took, frames = left.pop(0)
        now[0] += took
        for frame in frames:
            if frame == ("job",):
                client._waiting[1] = job
            else:
                client._on_frame(*frame)

    monkeypatch.setattr("handler.processes.engine_client.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("handler.processes.engine_client.asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    with pytest.raises(Over):
        await client.watch(4 * PAUSE_S)
    assert len(failures) == bool(said)
    assert said in "".join(failures)
    assert job.done() == bool(said)
    if said:
        assert isinstance(job.exception(), EngineError)
    ours.close()
    theirs.close()
