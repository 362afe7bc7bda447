"""How the stock loop's jobs are told that the engine hangs."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.batching.passage import Passage
from handler.stock import Watch

HUNG: Any = SimpleNamespace(busy_s=60.0, running="1 row")


async def never(begun: list[int]) -> None:
    begun.append(1)
    await asyncio.Event().wait()


def is_told(reply: Any) -> bool:
    return bool(reply["error"].startswith("worker fault: the engine did not end a batch of 1 row within 1 s"))


async def test_jobs_that_run_and_those_that_come_until_the_process_ends_are_told():
    ended, begun = threading.Event(), list[int]()
    watch = Watch(1.0, lambda sentence: ended.set())
    running = [asyncio.create_task(watch.guard(never(begun))) for _ in range(2)]
    await asyncio.sleep(0)
    watch.start(HUNG)
    assert all(map(is_told, await asyncio.gather(*running)))
    assert ended.wait(5)
    assert is_told(await asyncio.wait_for(watch.guard(never(begun)), 5))
    assert len(begun) == 2


async def test_a_job_that_ends_as_its_engine_is_given_up_is_not_cancelled_while_its_answer_is_sent():
    gate, sent = asyncio.Event(), []

    async def take_and_answer() -> None:
        sent.append(await watch.guard(gate.wait()))
        await asyncio.sleep(0.01)
        sent.append("posted")

    def end(sentence: str) -> None:
        given_up.set()

    given_up = threading.Event()
    watch = Watch(1.0, end)
    job = asyncio.create_task(take_and_answer())
    await asyncio.sleep(0)
    gate.set()  # its task is woken, and has its turn before what the watch asks for
    watch.start(HUNG)
    assert given_up.wait(5)
    await job
    assert sent == [True, "posted"]


@pytest.mark.parametrize("where", ["in a pause", "as it looks"])
def test_a_time_in_which_the_process_stood_still_does_not_count(where: str, monkeypatch: pytest.MonkeyPatch):
    """A batch is under way meanwhile, and ends soon after; the next one hangs."""
    now, begin, pauses, said = [0.0], [0.0], list[float](), list[str]()

    class Engine:
        running = "1 row"

        @property
        def busy_s(self) -> float:
            now[0] += 100.0 if len(pauses) == 2 and where == "as it looks" else 0.0
            return now[0] - begin[0]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += 100.0 if len(pauses) == 2 and where == "in a pause" else seconds
        if len(pauses) == 3:
            begin[0] = now[0]

    monkeypatch.setattr("handler.stock.time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    watch, engine = Watch(1.0, said.append), Engine()
    watch._watch(cast("Passage", engine))
    assert len(said) == 1
    assert now[0] - begin[0] == 1.25  # noticed at the first look behind the limit
