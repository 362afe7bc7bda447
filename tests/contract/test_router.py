"""Rows of several graphs in one job."""

from __future__ import annotations

import asyncio
import threading
import weakref

import numpy as np
import pytest

from engine.backends.fake import FakeEngine
from engine.batching.batcher import Batcher
from engine.batching.router import Router
from engine.batching.stats import Stats
from engine.bucket import Bucket
from engine.errors import EngineError, InvalidInput
from engine.tensors import Row, TensorSpec
from tests.contract.test_engine import failure_of, let_go, without_collections

__all__ = ["without_collections"]


class Graphs:
    """A router on two fakes; `gates` hold their runs back."""

    def __init__(self, max_queued: int = 100) -> None:
        self.stats, self.gates = Stats(), {name: threading.Event() for name in ("image", "text")}
        self.fail: set[str] = set()
        self.engines = {name: self._engine(name) for name in self.gates}
        limits = {"max_rows": 8, "max_tokens": 1000, "max_queued": max_queued, "stats": self.stats}
        self.router = Router({name: Batcher(one, **limits) for name, one in self.engines.items()}, self.stats)  # type: ignore[arg-type]

    def _engine(self, name: str) -> FakeEngine:
        inputs = [TensorSpec("values", "int32", ("batch", 4))]

        def on_run(bucket: Bucket) -> None:
            self.gates[name].wait(10)
            if name in self.fail:
                raise RuntimeError(f"{name} is broken")

        return FakeEngine(inputs, [TensorSpec(name, "float32", ("batch", 2))], on_run=on_run)

    def open(self) -> None:
        for gate in self.gates.values():
            gate.set()


def row(graph: str, seed: int) -> Row:
    return Row({"values": np.full(4, seed, np.int32)}, 1, graph)


async def test_outputs_come_in_the_order_of_the_rows_from_the_graph_of_each():
    graphs = Graphs()
    graphs.open()
    names = ["text", "image", "image", "text", "image"]
    outputs = await graphs.router.run([row(name, seed) for seed, name in enumerate(names)])
    assert [next(iter(output)) for output in outputs] == names
    for seed, (name, output) in enumerate(zip(names, outputs, strict=True)):
        (alone,) = await graphs.router.run([row(name, seed)])
        assert np.array_equal(output[name], alone[name])
    graphs.router.close()
    assert graphs.router.stats.rows == 10


async def test_what_waits_and_runs_is_told_of_all_graphs():
    graphs = Graphs()
    assert (graphs.router.running, graphs.router.busy_s) == ("", 0.0)
    running = [asyncio.ensure_future(graphs.router.run([row("text", 1)]))]
    while not graphs.router.busy_s:
        await asyncio.sleep(0.001)
    assert graphs.router.running == "1 row"
    running += [asyncio.ensure_future(graphs.router.run([row(name, 2) for _ in range(3)])) for name in graphs.gates]
    await asyncio.sleep(0)
    while graphs.router.queued != 3:  # those of the image's batch run at once
        await asyncio.sleep(0.001)
    graphs.open()
    await asyncio.gather(*running)
    assert graphs.router.queued == 0
    graphs.router.close()


async def test_a_graph_that_fails_fails_the_job_and_the_rest_of_it_is_cancelled():
    graphs = Graphs()
    graphs.fail.add("text")
    first = asyncio.ensure_future(graphs.router.run([row("image", 0)]))  # keeps the image's engine busy
    while not graphs.router.busy_s:
        await asyncio.sleep(0.001)
    job = asyncio.ensure_future(graphs.router.run([row("image", 1), row("text", 2)]))
    await asyncio.sleep(0)
    graphs.gates["text"].set()
    with pytest.raises(EngineError, match="text is broken"):
        await job
    while graphs.router.queued:
        await asyncio.sleep(0.001)
    graphs.open()
    await first
    graphs.router.close()
    assert graphs.router.stats.rows == 1


async def test_rows_that_one_graph_has_no_room_for_are_refused_whole():
    graphs = Graphs(max_queued=2)
    first = asyncio.ensure_future(graphs.router.run([row("image", 0)]))
    while not graphs.router.busy_s:
        await asyncio.sleep(0.001)
    with pytest.raises(InvalidInput, match="3 rows"):
        await graphs.router.run([row("image", 1), *(row("text", seed) for seed in range(3))])
    while graphs.router.queued:
        await asyncio.sleep(0.001)
    graphs.open()
    await first
    graphs.router.close()


@pytest.mark.parametrize("how", ["failed", "refused", "cancelled"])
@pytest.mark.usefixtures("without_collections")
async def test_a_job_that_ended_early_is_let_go_of_at_once(how: str):
    graphs = Graphs(max_queued=3 if how == "refused" else 100)
    if how == "failed":
        graphs.fail.add("text")
    if how != "cancelled":
        graphs.open()
    rows = [row(name, seed) for name in graphs.gates for seed in range(4)]
    held = [weakref.ref(one.feeds["values"]) for one in rows]
    job = asyncio.ensure_future(graphs.router.run(rows))
    del rows
    await asyncio.sleep(0)
    if how == "cancelled":
        while not graphs.router.busy_s:
            await asyncio.sleep(0.001)
        job.cancel()
    errors = {"failed": EngineError, "refused": InvalidInput, "cancelled": asyncio.CancelledError}
    assert await failure_of(job) is errors[how]
    del job
    graphs.open()
    await let_go(held)
    graphs.router.close()


async def test_a_closed_router_answers_nobody():
    graphs = Graphs()
    graphs.open()
    graphs.router.close()
    for name in graphs.gates:
        with pytest.raises(EngineError, match="closed"):
            await graphs.router.run([row(name, 0)])
    with pytest.raises(EngineError, match="closed"):
        await graphs.router.run([row("image", 0), row("text", 1)])


async def test_progress_counts_the_rows_of_all_graphs():
    graphs, told = Graphs(), list[int]()
    graphs.gates["text"].set()
    rows = [row("image", 0), *(row("text", seed) for seed in range(12)), row("image", 1)]
    job = asyncio.ensure_future(graphs.router.run(rows, told.append))
    async with asyncio.timeout(10):
        while 12 not in told:  # all of the texts, in two batches
            await asyncio.sleep(0.001)
    graphs.open()
    await job
    assert told == sorted(set(told))
    assert told[:2] == [8, 12] and told[-1] < len(rows)
    graphs.router.close()


async def test_whoever_is_told_of_engines_is_told_by_every_graph():
    graphs, said = Graphs(), list[str]()
    graphs.router.on_lost = said.append
    for batcher in graphs.router._batchers.values():
        batcher.on_lost("lost")
    graphs.router.on_lost("once more")
    assert said == ["lost", "lost", "once more"]
    graphs.open()
    graphs.router.close()
