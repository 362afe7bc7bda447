"""A row that finds the engine idle and comes alone is run on the event loop, when runs of its size are short."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.backends.fake import FakeEngine
from engine.batching.batcher import Batcher
from engine.bucket import Bucket
from engine.bundle import open_bundle
from engine.errors import EngineError, EngineLost
from tests.contract.test_engine import row


class Watched:
    """A batcher on a fake engine that notes which thread runs what; `on_run` is called in each run."""

    def __init__(
        self,
        bundle: Path,
        *,
        slots: int = 1,
        computes_in_caller: bool = False,
        max_delay_s: float = 0.0,
        on_loops: bool = True,
    ) -> None:
        self.runs: list[tuple[int, bool]] = []
        """Rows of each run, and whether it ran in the thread that made this object."""
        self.on_run: Callable[[], None] = lambda: None
        self._loop_thread = threading.get_ident()
        engine = FakeEngine.from_bundle(open_bundle(bundle), slots=slots)
        engine.on_run = self._note
        engine.computes_in_caller = computes_in_caller
        self.batcher = Batcher(
            engine, max_rows=8, max_tokens=1000, max_queued=100, max_delay_s=max_delay_s, on_loops=on_loops
        )

    def _note(self, bucket: Bucket) -> None:
        self.runs.append((bucket.batch, threading.get_ident() == self._loop_thread))
        self.on_run()


@pytest.fixture(params=[1, 2], ids=["one slot", "two slots"])
async def watched(request: pytest.FixtureRequest, small_bundle: Path) -> Watched:
    made = Watched(small_bundle, slots=request.param)
    await made.batcher.run([row(4)])  # the first of its size: how long that takes is not known yet
    assert made.runs == [(1, False)]
    await _idle(made.batcher)
    return made


async def _idle(batcher: Batcher) -> None:
    while batcher._lanes._running:
        await asyncio.sleep(0.001)


async def test_it_runs_on_the_loop_and_says_the_same(watched: Watched):
    (in_thread,) = await watched.batcher.run([row(9, seed=1)])
    await _idle(watched.batcher)
    (here,) = await watched.batcher.run([row(9, seed=1)])
    watched.batcher.close()
    assert watched.runs[1:] == [(1, False), (1, True)]
    assert (in_thread["embedding"] == here["embedding"]).all()
    assert watched.batcher.stats.rows == 3


async def test_the_thread_sleeps_on(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    woken: list[int] = []
    monkeypatch.setattr(watched.batcher._wake, "notify", lambda: woken.append(1))
    await watched.batcher.run([row(4)])
    monkeypatch.undo()
    watched.batcher.close()
    assert watched.runs[1:] == [(1, True)]
    assert not woken


async def test_rows_that_come_together_share_a_batch(watched: Watched):
    answers = await asyncio.gather(*(watched.batcher.run([row(4, seed)]) for seed in range(8)))
    watched.batcher.close()
    assert len(answers) == 8
    assert not any(here for _, here in watched.runs)
    assert max(rows for rows, _ in watched.runs) > 1


async def test_several_rows_go_to_the_thread(watched: Watched):
    await watched.batcher.run([row(4), row(4)])
    watched.batcher.close()
    assert watched.runs[1:] == [(2, False)]


async def test_a_row_that_comes_while_the_thread_runs_waits_for_it(watched: Watched):
    """The buffers are those of one run at a time."""
    gate, started = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        gate.wait(10)

    watched.on_run = hold
    running = asyncio.ensure_future(watched.batcher.run([row(4), row(4)]))
    await asyncio.to_thread(started.wait, 10)
    alone = asyncio.ensure_future(watched.batcher.run([row(4)]))
    while not watched.batcher.queued and len(watched.runs) == 2:
        await asyncio.sleep(0.001)
    gate.set()
    await asyncio.gather(running, alone)
    watched.batcher.close()
    assert watched.runs[1:] == [(2, False), (1, False)]


async def test_a_run_that_was_long_is_not_repeated_on_the_loop(watched: Watched):
    watched.on_run = lambda: time.sleep(0.05)
    for _ in range(3):
        await watched.batcher.run([row(4)])
        await _idle(watched.batcher)
    watched.batcher.close()
    assert watched.runs[1:] == [(1, True), (1, False), (1, False)]


@pytest.mark.parametrize("options", [{"max_delay_s": 0.001}, {"on_loops": False}], ids=str)
async def test_no_row_runs_there_where_it_is_to_wait_for_company_or_the_loop_to_go_on(
    small_bundle: Path, options: dict[str, Any]
):
    watched = Watched(small_bundle, **options)
    for _ in range(3):
        await watched.batcher.run([row(4)])
        await _idle(watched.batcher)
    watched.batcher.close()
    assert not any(here for _, here in watched.runs)


async def test_jobs_that_are_cancelled_as_they_come_keep_no_later_row_from_it(watched: Watched):
    jobs = [asyncio.ensure_future(watched.batcher.run([row(4)])) for _ in range(3)]
    await asyncio.sleep(0)  # they look around for others
    for job in jobs:
        job.cancel()
    await asyncio.wait(jobs)
    await watched.batcher.run([row(4)])
    watched.batcher.close()
    assert watched.runs[1:] == [(1, True)]


async def test_an_error_there_fails_its_job_alone(watched: Watched):
    def fail() -> None:
        raise ValueError("not this one")

    watched.on_run = fail
    with pytest.raises(EngineError, match="ValueError: not this one"):
        await watched.batcher.run([row(4)])
    watched.on_run = lambda: None
    await watched.batcher.run([row(4)])
    watched.batcher.close()
    assert [here for _, here in watched.runs[1:]] == [True, True]


async def test_a_row_longer_than_any_bucket_fails_its_job(watched: Watched):
    with pytest.raises(EngineError, match="ValueError"):
        await watched.batcher.run([row(1000)])
    watched.batcher.close()


async def test_an_engine_lost_there_runs_nothing_again(watched: Watched):
    said: list[str] = []
    watched.batcher.on_lost = said.append

    def lose() -> None:
        raise EngineLost("the device has fallen off the bus")

    watched.on_run = lose
    for _ in range(2):
        with pytest.raises(EngineLost, match="off the bus"):
            await watched.batcher.run([row(4)])
    watched.batcher.close()
    assert watched.runs[1:] == [(1, True)]
    assert said == ["the device has fallen off the bus"]


@pytest.mark.parametrize("count", [1, 3])
async def test_what_another_loop_brings_meanwhile_waits_and_is_answered(watched: Watched, count: int):
    others: list[int] = []
    waited: list[int] = []

    async def ask() -> None:
        others.extend(map(len, await asyncio.gather(*(watched.batcher.run([row(5, seed)]) for seed in range(count)))))

    other = threading.Thread(target=lambda: asyncio.run(ask()), daemon=True)

    def bring() -> None:
        watched.on_run = lambda: None
        other.start()
        deadline = time.monotonic() + 10
        while watched.batcher.queued < count and time.monotonic() < deadline:  # they wait, although the thread is idle
            time.sleep(0.001)
        waited.append(watched.batcher.queued)

    watched.on_run = bring
    await watched.batcher.run([row(4)])
    await asyncio.to_thread(other.join, 10)
    watched.batcher.close()
    assert (waited, others) == ([count], [1] * count)
    assert watched.runs[1][1] and not any(here for _, here in watched.runs[2:])


async def test_closing_meanwhile_waits_for_the_run(watched: Watched):
    closed = threading.Event()

    def close() -> None:
        watched.batcher.close()
        closed.set()

    closing = threading.Thread(target=close)

    def begin_closing() -> None:
        closing.start()
        assert not closed.wait(0.05)

    watched.on_run = begin_closing
    assert len(await watched.batcher.run([row(4)])) == 1
    await asyncio.to_thread(closing.join, 10)
    assert closed.is_set()


async def test_an_engine_that_computes_in_the_calling_thread_keeps_its_own(small_bundle: Path):
    watched = Watched(small_bundle, computes_in_caller=True)
    for _ in range(3):
        await watched.batcher.run([row(4)])
        await _idle(watched.batcher)
    watched.batcher.close()
    assert not any(here for _, here in watched.runs)
