"""What the rows of all jobs hold at once: taken before they run, and given back however a job ends."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
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
from engine.tasks.items import Request
from handler import heap
from handler.handler import Handler
from tests.contract.test_engine import let_go, without_collections
from tests.loops import until

__all__ = ["without_collections"]

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


async def test_a_job_waits_for_what_others_hold_and_is_answered_when_they_have_ended(gated: Gated, monkeypatch: Any):
    one = await gated.size(job(10))
    monkeypatch.setattr(OF_PROCESS, "most", 2 * one)
    others = [gated.start(job(10)) for _ in range(2)]
    await until(lambda: OF_PROCESS.held == 2 * one)
    waits = [gated.start(job(count)) for count in (1, 40, 5)]  # one of them larger than the budget
    await until(lambda: len(OF_PROCESS.waiting) == 3)
    gated.gate.set()
    assert all(b"embedding" in body for body in await asyncio.gather(*others, *waits))


@pytest.mark.usefixtures("without_collections")
async def test_a_job_that_waits_holds_no_rows(gated: Gated, monkeypatch: pytest.MonkeyPatch):
    made: list[weakref.ref[Any]] = []
    row = gated.task.tokens.row
    with monkeypatch.context() as patch:
        first = gated.start(job(10))
        await until(lambda: OF_PROCESS.held > 0)

        def kept(encoding: Any) -> Any:
            found = row(encoding)
            made.append(weakref.ref(found.feeds["input_ids"]))
            return found

        patch.setattr(gated.task.tokens, "row", kept)
        for count in (10, 1000):  # the second in a thread
            waits = gated.start(job(count))
            await until(lambda: len(OF_PROCESS.waiting) == 1)
            await let_go(made)
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
    assert len(made) == 1010
    assert not OF_PROCESS.waiting
    gated.gate.set()
    await first


async def test_what_a_job_that_waits_is_cancelled_for_goes_to_the_next(gated: Gated, monkeypatch: pytest.MonkeyPatch):
    one = await gated.size(job(10))
    monkeypatch.setattr(OF_PROCESS, "most", 2 * one)
    first = gated.start(job(15))
    await until(lambda: OF_PROCESS.held > 0)
    large = gated.start(job(20))
    await until(lambda: len(OF_PROCESS.waiting) == 1)
    next_one = gated.start(job(5))
    await until(lambda: len(OF_PROCESS.waiting) == 2)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await large
    await until(lambda: not OF_PROCESS.waiting and OF_PROCESS.held == 2 * one)
    gated.gate.set()
    assert b"embedding" in await first
    assert b"embedding" in await next_one


@pytest.mark.parametrize("has_waited", [False, True])
async def test_what_overloads_a_task_of_ones_own_is_told_and_not_waited_for(
    gated: Gated, monkeypatch: pytest.MonkeyPatch, has_waited: bool
):
    first = gated.start(job(10))
    await until(lambda: OF_PROCESS.held > 0)
    made, tries = gated.task.preprocess, list[int]()

    def busy(request: Request) -> Any:
        tries.append(len(tries))
        if has_waited and len(tries) == 1:
            return made(request)  # which other jobs are in the way of
        raise Overloaded("a server of its own is busy") if len(tries) < 5 else AssertionError("it is tried for ever")

    monkeypatch.setattr(gated.task, "preprocess", busy)
    asked = gated.start(job(10))
    if has_waited:
        await until(lambda: len(OF_PROCESS.waiting) == 1)
    gated.gate.set()
    assert orjson.loads(await asked)["error"] == "overloaded, please retry: a server of its own is busy"
    assert b"embedding" in await first
    assert len(tries) == 1 + has_waited


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


async def test_parts_of_two_streams_wait_for_one_another(gated: Gated, monkeypatch: pytest.MonkeyPatch):
    bodies: list[bytes] = []

    async def keep(body: bytes) -> None:
        bodies.append(body)

    monkeypatch.setattr(OF_PROCESS, "most", await gated.size(job(100)))
    gated.gate.set()
    asked = [gated.handler.body(job(300, stream=True), keep) for _ in range(3)]
    async with asyncio.timeout(60):
        assert await asyncio.gather(*asked) == [b'{"output":[]}'] * 3
    assert sum(len(orjson.loads(body)["output"]["embeddings"]) for body in bodies) == 900


async def test_parts_that_a_task_of_ones_own_copies_have_a_share_each(gated: Gated):
    class Own(FeatureExtraction):
        def split(self, request: Request, rows: int) -> Sequence[Request]:
            starts = range(0, len(request.items), 8)
            return [replace(request, items=request.items[at : at + 8], parts=[]) for at in starts]

    async def ignore(body: bytes) -> None:
        pass

    gated.gate.set()
    handler = Handler(Own(gated.task.tokens, gated.task.config, gated.task.limits), gated.batcher, dict)
    assert await handler.body(job(100, stream=True), ignore) == b'{"output":[]}'
    assert OF_PROCESS.held == 0


def test_a_share_counts_while_it_is_entered_and_only_what_is_new(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(OF_PROCESS, "most", 100)
    one, other = Share(), Share()
    one.reach(50)  # by whoever makes rows and runs none
    assert OF_PROCESS.held == 0
    with one:
        one.reach(500)
        one.reach(60)
        assert OF_PROCESS.held == one.size == 500
        with other, pytest.raises(Overloaded) as error:
            other.reach(10)
        assert error.value.sentence() == SAID
    one.reach(1000)  # a thread that has not heard of the end
    assert (OF_PROCESS.held, one.size) == (0, 500)
    with other, one:
        one.reach(40)
        other.reach(60)
        with pytest.raises(Overloaded):
            one.reach(41)
        assert OF_PROCESS.held == 60  # what it had is for those that wait with it
        with pytest.raises(AssertionError, match="one job's alone"), one:
            pass
    assert OF_PROCESS.held == 0


async def turn(share: Share, name: str, turns: list[str]) -> None:
    await share.turn()
    turns.append(name)


async def test_whoever_has_waited_longest_is_next_and_small_ones_pass(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(OF_PROCESS, "most", 1000)
    with ExitStack() as stack:
        running, large, late, *small = (stack.enter_context(Share()) for _ in range(15))
        running.reach(600)
        for one, size in ((large, 5000), (late, 100)):  # the one is for ever too large beside another
            with pytest.raises(Overloaded):
                one.reach(size)
        for one in small[:9]:
            one.reach(10)
        assert OF_PROCESS.held == 690
        with pytest.raises(Overloaded):  # it begins small
            small[10].reach(1, 11)
        small[9].reach(10)
        with pytest.raises(Overloaded):  # all of them have a tenth
            small[11].reach(10)
        with pytest.raises(Overloaded):  # it is small no more
            small[0].reach(11)
        assert small[11].size == 10  # in its place
        running.reach(700)  # what has begun goes on
        turns: list[str] = []
        waits = [asyncio.create_task(turn(one, name, turns)) for one, name in ((large, "large"), (late, "late"))]
        await asyncio.sleep(0)
        running.__exit__()
        running.__enter__()
        await waits[0]
        assert (turns, large.size, late.size) == (["large"], 5000, 0)
        large.reach(5000)
        large.__exit__()
        large.__enter__()
        await waits[1]
        assert late.size == 100
        assert small[0].size == 11
    assert OF_PROCESS.held == 0


async def test_what_turns_out_larger_than_was_told_keeps_its_turn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(OF_PROCESS, "most", 100)
    with ExitStack() as stack:
        running, beside, one, late = (stack.enter_context(Share()) for _ in range(4))
        running.reach(50)
        beside.reach(50)
        for share, size, expected in ((one, 20, 40), (late, 60, 0)):
            with pytest.raises(Overloaded):
                share.reach(size, expected)
        beside.__exit__()
        beside.__enter__()
        assert one.size == 40
        await one.turn()
        with pytest.raises(Overloaded):
            one.reach(70)
        running.__exit__()
        running.__enter__()
        await one.turn()
        assert (one.size, late.size) == (70, 0)


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
