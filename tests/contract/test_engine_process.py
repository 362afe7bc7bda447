"""What the worker's two processes say to each other, here at the two ends of a socket pair in one process."""

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator
from concurrent import futures
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from engine.config import Settings
from engine.passage import Passage
from engine.stats import Stats
from engine.tasks.base import Task
from engine.tensors import Row
from handler.boot import Worker, boot
from handler.engine_client import EngineClient
from handler.engine_server import _Server
from handler.handler import Handler
from handler.parts import AHEAD
from handler.timeline import Timeline

ROWS_OF_A_PART = 64


@pytest.fixture(autouse=True)
def _unfrozen() -> None:
    gc.unfreeze()


async def test_a_stream_that_is_taken_slowly_is_not_answered_further(small_bundle: Path):
    """Else the whole result would wait in memory for a platform that is slow."""
    worker = boot(Settings(bundle=small_bundle, engine="fake"), Timeline())
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(_Server(worker).run(theirs))
    client = EngineClient(ours, lambda why: None)
    await client.start()
    texts = ["a"] * (20 * ROWS_OF_A_PART)
    parts = client.stream({"id": "1", "input": {"texts": texts, "stream": True}})
    await anext(parts)
    served = -1
    while served < (served := worker.batcher.stats.rows):
        await asyncio.sleep(0.2)
    assert 0 < served <= (2 * AHEAD + 1) * ROWS_OF_A_PART < len(texts)
    assert len([part async for part in parts]) == 20
    client.close()
    await serving
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
    passage = Passage(Stats())
    worker = SimpleNamespace(
        handler=handler,
        batcher=passage,
        choices={},
        choice=SimpleNamespace(engine="none", reason=""),
        timeline=SimpleNamespace(stages={}),
    )
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(_Server(cast("Worker", worker)).run(theirs))
    client = EngineClient(ours, lambda why: None)
    await client.start()
    yield client
    client.close()
    await serving


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
    monkeypatch.setattr("handler.frames._LENGTH", struct.Struct("<H"))  # 64 KiB in place of 4 GiB

    class Large(Failing):
        def postprocess(self, payload: list[str], outputs: object) -> str:
            return "x" * int(payload[0])

    async with both_ends(Handler(cast("Task", Large()), Passage(Stats()), dict)) as client:
        fault = "worker fault: the answer could not be made or passed on, the worker's log says why; ask for less"
        assert await answer(client, ["70000", ""]) == {"error": fault}
        assert await answer(client, ["1", ""]) == {"output": "x"}
