"""What the rows of all jobs hold at once: taken before they run, and given back however a job ends."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from engine.backends.fake import FakeEngine
from engine.batching.batcher import Batcher
from engine.bundle import open_bundle
from engine.config import Limits
from engine.errors import Overloaded
from engine.tasks.budget import OF_PROCESS, Share
from engine.tasks.feature_extraction import FeatureExtraction
from handler import heap
from handler.handler import Handler
from tests.loops import until

SAID = (
    "overloaded, please retry: the rows of other jobs hold the memory that this one needs; send it later, or split it"
)


def job(count: int, **options: Any) -> dict[str, Any]:
    return {"input": {"texts": ["a"] * count, **options}}


class Gated:
    """A handler on an engine that waits for `gate` at each run, and fails where it is told to."""

    def __init__(self, folder: Path) -> None:
        self.gate, self.running, self.fails = threading.Event(), threading.Event(), False
        bundle = open_bundle(folder)
        engine = FakeEngine.from_bundle(bundle)
        engine.on_run = self._run
        self.batcher = Batcher(engine, max_rows=32, max_tokens=0, max_queued=10_000, on_loops=False)
        self.task = FeatureExtraction.from_bundle(bundle, Limits(max_items=1000))
        self.handler = Handler(self.task, self.batcher, dict)

    def _run(self, bucket: object) -> None:
        self.running.set()
        assert self.gate.wait(30)
        if self.fails:
            raise RuntimeError("x")

    def start(self, payload: dict[str, Any]) -> "asyncio.Task[bytes]":
        return asyncio.create_task(self.handler.body(payload))

    async def size(self, payload: dict[str, Any]) -> int:
        """What the job holds; it is alone, and may be larger than the budget."""
        asked = self.start(payload)
        await until(lambda: OF_PROCESS.held > 0)
        held = OF_PROCESS.held
        self.gate.set()
        assert b"embedding" in await asked
        self.gate.clear()
        return held


@pytest.fixture
async def gated(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gated]:
    monkeypatch.setattr(OF_PROCESS, "most", 1)
    found = Gated(small_bundle)
    yield found
    assert OF_PROCESS.held == 0
    found.gate.set()
    found.batcher.close()


async def test_a_job_is_refused_for_what_others_hold_and_taken_when_they_have_ended(gated: Gated, monkeypatch: Any):
    one = await gated.size(job(10))
    monkeypatch.setattr(OF_PROCESS, "most", 2 * one)
    others = [gated.start(job(10)) for _ in range(2)]
    await until(lambda: OF_PROCESS.held == 2 * one)
    assert orjson.loads(await gated.handler.body(job(1)))["error"] == SAID
    gated.gate.set()
    assert all(b"embedding" in body for body in await asyncio.gather(*others))
    assert b"embedding" in await gated.handler.body(job(20))


@pytest.mark.parametrize("how", ["cancelled", "failed", "not put together", "refused"])
async def test_it_is_given_back_however_a_job_ends(gated: Gated, monkeypatch: pytest.MonkeyPatch, how: str):
    gated.fails = how == "failed"
    if how == "not put together":
        monkeypatch.setattr(FeatureExtraction, "postprocess", lambda *_: 1 / 0)
    if how == "refused":
        gated.batcher.close()
    asked = gated.start(job(10))
    if how != "refused":
        await until(lambda: OF_PROCESS.held > 0)
    if how == "cancelled":
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    else:
        gated.gate.set()
        assert b"error" in await asked


async def test_parts_of_a_stream_wait_for_one_another(gated: Gated, monkeypatch: pytest.MonkeyPatch):
    """Each has a share of its own, and they are made a few ahead."""
    bodies: list[bytes] = []

    async def keep(body: bytes) -> None:
        bodies.append(body)

    monkeypatch.setattr(OF_PROCESS, "most", await gated.size(job(64)))
    gated.gate.set()
    assert await gated.handler.body(job(200, stream=True), keep) == b'{"output":[]}'
    assert [len(orjson.loads(body)["output"]["embeddings"]) for body in bodies] == [64, 64, 64, 8]


def test_a_share_counts_while_it_is_entered_and_only_what_is_new(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(OF_PROCESS, "most", 100)
    one, other = Share(), Share()
    one.reach(50)  # by whoever makes rows and runs none
    assert OF_PROCESS.held == 0
    with one:
        one.reach(500)
        one.reach(60)
        assert OF_PROCESS.held == one.size == 500
        with other, pytest.raises(Overloaded):
            other.reach(1)
    one.reach(1000)  # a thread that has not heard of the end
    assert (OF_PROCESS.held, one.size) == (0, 500)
    with other, one:
        one.reach(40)
        other.reach(60)
        with pytest.raises(Overloaded):
            one.reach(41)
    assert OF_PROCESS.held == 0


# The heap


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_heap_with_something_at_its_end_is_given_back():
    large = np.ones(20_000_000, np.uint8)
    del large  # from now on the C library makes no mapping of its own for less
    rows, last = [np.ones(150_000, np.uint8) for _ in range(700)], bytes(100_000)
    before = resident()
    del rows
    heap.shrink()
    assert resident() < before - 70_000_000
    assert last


async def test_the_heap_is_given_back_once_behind_large_jobs_that_follow_one_another(
    gated: Gated, monkeypatch: pytest.MonkeyPatch
):
    shrunk: list[int] = []
    monkeypatch.setattr(heap, "shrink", lambda: shrunk.append(OF_PROCESS.held))
    monkeypatch.setattr(heap, "_PAUSE_S", 0.05)
    gated.gate.set()
    await gated.handler.body(job(10))
    await asyncio.sleep(0.1)
    assert not shrunk
    monkeypatch.setattr(heap, "_LARGE", 100)
    await asyncio.gather(*(gated.handler.body(job(10)) for _ in range(5)))
    await until(lambda: bool(shrunk))
    await asyncio.sleep(0.1)
    assert shrunk == [0]
