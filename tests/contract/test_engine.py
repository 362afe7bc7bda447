"""The contracts of an engine and its batcher, against every backend that is here."""

import asyncio
import gc
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.backends.base import Engine
from engine.backends.fake import FakeEngine
from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.backends.onnxruntime_cuda import OnnxRuntimeCudaEngine
from engine.batching.batcher import Batcher
from engine.batching.feed import run_rows
from engine.bucket import Bucket
from engine.bundle import Bundle, open_bundle
from engine.errors import EngineError, EngineLost, InvalidInput, Overloaded
from engine.tensors import Arrays, Row
from tests.bundles import DIMENSION, MAX_LENGTH, write_small_bundle
from tests.plans import profiles
from tests.tensorrt_double import engine_on_double


def on_double(bundle: Bundle) -> Engine:
    """TensorRT and CUDA are doubles, all else is real."""
    batches, lengths = (1, 2, 3, 4, 8, 16, 32), (8, 16, 24, 32)
    return engine_on_double(bundle.path, profiles=profiles(batches, lengths), batches=batches, lengths=lengths)


BACKENDS: dict[str, Callable[..., Engine]] = {
    "fake": FakeEngine.from_bundle,
    "fake with two slots": partial(FakeEngine.from_bundle, slots=2),
    "fake with three lanes": partial(FakeEngine.from_bundle, lanes=3),
    "onnxruntime-cpu": OnnxRuntimeEngine,
    "onnxruntime-cpu with two lanes": partial(OnnxRuntimeEngine, threads=2, lanes=True),
    "onnxruntime-cuda's way, on the cpu": partial(OnnxRuntimeCudaEngine, device="cpu"),
    "tensorrt on a double": on_double,
}


@pytest.fixture(params=BACKENDS)
def engine(request: pytest.FixtureRequest, small_bundle: Path) -> Iterator[Engine]:
    bundle = open_bundle(small_bundle)
    made: Engine = BACKENDS[request.param](bundle)
    made.warm_up()
    yield made
    made.close()


def row(length: int, seed: int = 0) -> Row:
    ids = np.random.default_rng(seed).integers(1, 49, length).astype(np.int32)
    return Row({"input_ids": ids, "attention_mask": np.ones(length, np.int32)}, length)


def test_shapes_and_buckets(engine: Engine):
    assert [spec.name for spec in engine.inputs] == ["input_ids", "attention_mask"]
    assert engine.buckets.largest.length == MAX_LENGTH
    outputs = engine.run(Bucket(2, 8))
    assert outputs["embedding"].shape == (2, DIMENSION)
    assert outputs["embedding"].dtype == np.float32


def test_a_rows_answer_does_not_depend_on_its_company(engine: Engine):
    rows = [row(length, seed=length) for length in (1, 5, 8, 9, 31, 32)]
    alone = [run_rows(engine, [one])[0]["embedding"] for one in rows]
    together = [answer["embedding"] for answer in run_rows(engine, rows)]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    assert len({tuple(answer) for answer in together}) == len(rows)


def test_results_outlive_the_next_run(engine: Engine):
    (first,) = run_rows(engine, [row(4, seed=1)])
    before = first["embedding"].copy()
    run_rows(engine, [row(4, seed=2)])
    assert np.array_equal(first["embedding"], before)


def test_buffers_are_the_same_at_every_run(engine: Engine):
    bucket = Bucket(3, 16)
    feeds, outputs = engine.feeds(bucket), engine.run(bucket)
    assert all(engine.feeds(bucket)[name] is array for name, array in feeds.items())
    assert all(engine.run(bucket)[name] is array for name, array in outputs.items())
    # One allocation a tensor: a smaller bucket is the beginning of a larger one.
    assert np.shares_memory(engine.feeds(Bucket(1, 8))["input_ids"], feeds["input_ids"])


def test_more_rows_than_any_bucket_holds_are_refused(engine: Engine):
    with pytest.raises(ValueError, match="no bucket holds"):
        run_rows(engine, [row(1)] * 33)


# The batcher


async def arrived() -> None:
    """Let the jobs that were just started reach the queue: they look around first for others that came with them."""
    for _ in range(3):
        await asyncio.sleep(0)


def batcher_on(engine: Engine, max_queued: int = 1000) -> Batcher:
    return Batcher(engine, max_rows=8, max_tokens=1000, max_queued=max_queued)


async def test_rows_come_back_in_order(engine: Engine):
    batcher = batcher_on(engine)
    rows = [row(1 + index % 30, seed=index) for index in range(100)]
    outputs = await batcher.run(rows)
    for one, output in zip(rows, outputs, strict=True):
        assert np.allclose(output["embedding"], run_rows(engine, [one])[0]["embedding"], rtol=1e-5, atol=1e-6)
    batcher.close()
    assert batcher.stats.rows == 100


async def let_go(held: list[weakref.ref[Any]]) -> None:
    """Wait until nobody holds any of these."""
    async with asyncio.timeout(10):
        while any(reference() is not None for reference in held):
            await asyncio.sleep(0.001)


@pytest.fixture
def without_collections() -> Iterator[None]:
    """No circle of references is found and freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def failure_of(job: asyncio.Task[Any]) -> type[object]:
    """What `job` fails with. It is not raised: its traceback would lead here, and so back to the job."""
    await asyncio.wait([job])
    return asyncio.CancelledError if job.cancelled() else type(job.exception())


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("how", ["not filled", "not started", "not finished", "not finite", "not whole", "cancelled"])
@pytest.mark.usefixtures("without_collections")
async def test_a_job_that_failed_is_let_go_of_at_once(small_bundle: Path, how: str, slots: int):
    """Its error's traceback leads to its rows. Gigabytes of them are a few objects to Python's collector."""

    class Failing(FakeEngine):
        def start(self, bucket: Bucket, slot: int = 0) -> None:
            if how == "not started":
                raise EngineError("cannot")
            super().start(bucket, slot)

        def finish(self, slot: int = 0) -> Arrays:
            outputs = super().finish(slot)
            if how == "not finished":
                raise EngineError("cannot")
            if how == "not finite":
                outputs["embedding"][:] = np.nan
            return {"embedding": outputs["embedding"][:1]} if how == "not whole" else outputs

    batcher = batcher_on(Failing.from_bundle(open_bundle(small_bundle), slots=slots))
    rows = [row(MAX_LENGTH + 9 if how == "not filled" else 4, seed) for seed in range(20)]
    held: list[weakref.ref[Any]] = [weakref.ref(one.feeds["input_ids"]) for one in rows]
    job = asyncio.ensure_future(batcher.run(rows))
    del rows
    await arrived()
    if how == "cancelled":
        job.cancel()
    assert await failure_of(job) is (asyncio.CancelledError if how == "cancelled" else EngineError)
    del job
    await let_go(held)
    batcher.close()


@pytest.mark.parametrize("slots", [1, 2])
async def test_a_run_that_could_not_be_started_is_not_answered_with_what_lay_in_the_buffers(
    small_bundle: Path, slots: int
):
    class Refusing(FakeEngine):
        def start(self, bucket: Bucket, slot: int = 0) -> None:
            self._started.clear()  # as on a device, `finish` has outputs whatever became of `start`
            super().start(bucket, slot)
            if refuses:
                raise EngineError("cannot")

    refuses: list[bool] = []
    batcher = batcher_on(Refusing.from_bundle(open_bundle(small_bundle), slots=slots))
    assert len(await batcher.run([row(4)])) == 1
    refuses.append(True)
    for count in (1, 3):
        with pytest.raises(EngineError, match="cannot"):
            await batcher.run([row(4, seed) for seed in range(count)])
    batcher.close()


async def test_an_engine_that_waits_holds_nothing_of_the_jobs_before(engine: Engine):
    batcher = batcher_on(engine)
    rows = [row(4, seed) for seed in range(20)]
    held: list[weakref.ref[Any]] = [weakref.ref(one.feeds["input_ids"]) for one in rows]
    held += [weakref.ref(answer["embedding"]) for answer in await batcher.run(rows)]
    del rows
    await let_go(held)
    batcher.close()


async def test_tokens_are_counted_with_and_without_padding(engine: Engine):
    batcher = batcher_on(engine)
    await batcher.run([row(3), row(5)])
    batcher.close()
    summary = batcher.stats.summary()
    assert (summary["tokens_served"], summary["batches_run"]) == (8, 1)
    assert summary["tokens_computed"] == engine.buckets.fit(2, 5).tokens >= 10


async def test_no_rows_have_no_answers_and_cost_nobody_anything(small_bundle: Path):
    """A task should make one at least; one that does not must not stop the worker."""
    batcher = batcher_on(FakeEngine.from_bundle(open_bundle(small_bundle)))
    async with asyncio.timeout(10):
        assert await batcher.run([]) == []
        assert len(await batcher.run([row(4), row(5)])) == 2
    batcher.close()


@pytest.mark.parametrize("step", ["_queue.pop", "_flights.load", "_flights.start", "_flights.finish"])
async def test_batching_that_fails_loses_the_engine(small_bundle: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    """A policy that was changed may be wrong: jobs that wait for ever would tell nobody."""
    batcher, said = batcher_on(FakeEngine.from_bundle(open_bundle(small_bundle))), list[str]()
    batcher.on_lost = said.append

    def wrong(*arguments: Any) -> Any:
        raise IndexError("off by one")

    part, name = step.split(".")
    monkeypatch.setattr(getattr(batcher, part), name, wrong)
    async with asyncio.timeout(10):
        for _ in range(2):
            with pytest.raises(EngineLost, match="batching failed with IndexError: off by one"):
                await batcher.run([row(4), row(5)])
    batcher.close()
    assert said == ["batching failed with IndexError: off by one"]


@pytest.mark.parametrize("batches", [1, 2])
async def test_batching_that_fails_answers_the_batch_under_way(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, batches: int
):
    """With two slots a batch is chosen between a run and its answers, and, where a whole one waits, during the run."""
    engine = FakeEngine.from_bundle(open_bundle(small_bundle), max_batch=8, slots=2)
    gate, started, popped = threading.Event(), threading.Event(), list[object]()

    def hold(bucket: Bucket) -> None:
        started.set()
        gate.wait(10)

    engine.on_run = hold
    batcher, lost = batcher_on(engine), list[str]()
    batcher.on_lost = lost.append
    pop = batcher._queue.pop

    def wrong(*arguments: Any) -> Any:
        if len(popped) == batches:
            raise IndexError("off by one")
        popped.append(batch := pop(*arguments))
        return batch

    monkeypatch.setattr(batcher._queue, "pop", wrong)
    first = asyncio.ensure_future(batcher.run([row(4)]))
    await asyncio.to_thread(started.wait, 10)
    others = [asyncio.ensure_future(batcher.run([row(4, seed)])) for seed in range(16)]
    await arrived()
    gate.set()
    async with asyncio.timeout(10):
        found = await asyncio.gather(first, *others, return_exceptions=True)
    assert [isinstance(one, EngineLost) for one in found] == [batches == 1] + [True] * 16
    batcher.close()
    assert lost == ["batching failed with IndexError: off by one"]


async def test_batching_that_fails_answers_the_batch_that_was_taken_behind_it(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    """The one in the other slot, which nothing waits for yet."""
    engine = FakeEngine.from_bundle(open_bundle(small_bundle), max_batch=8, slots=2)
    gate, started = threading.Event(), threading.Event()

    def hold(bucket: Bucket) -> None:
        started.set()
        gate.wait(10)

    engine.on_run = hold
    batcher, runs = batcher_on(engine), list[str]()
    stage = batcher.stats.stage

    def wrong(name: str, seconds: float) -> None:
        runs.extend([name] * (name == "run"))
        if len(runs) == 2:
            raise MemoryError("no room")
        stage(name, seconds)

    monkeypatch.setattr(batcher.stats, "stage", wrong)
    first = asyncio.ensure_future(batcher.run([row(4)]))
    await asyncio.to_thread(started.wait, 10)
    others = [asyncio.ensure_future(batcher.run([row(4, seed)])) for seed in range(16)]
    await arrived()
    gate.set()
    async with asyncio.timeout(10):
        found = await asyncio.gather(first, *others, return_exceptions=True)
    assert [isinstance(one, EngineLost) for one in found] == [False] + [True] * 16
    batcher.close()


async def test_jobs_share_batches_while_the_engine_is_busy(small_bundle: Path):
    gate, started, runs = threading.Event(), threading.Event(), []

    def hold(bucket: Bucket) -> None:
        runs.append(bucket)
        started.set()
        gate.wait(10)

    engine = FakeEngine.from_bundle(open_bundle(small_bundle))
    engine.on_run = hold
    batcher = batcher_on(engine)
    first = asyncio.ensure_future(batcher.run([row(4)]))
    await asyncio.to_thread(started.wait, 10)
    others = [asyncio.ensure_future(batcher.run([row(4, seed)])) for seed in range(8)]
    await arrived()
    gate.set()
    await asyncio.gather(first, *others)
    batcher.close()
    assert [bucket.batch for bucket in runs] == [1, 8]


async def test_a_poisoned_row_fails_its_own_job_only(small_bundle: Path):
    """Whatever shares a batch with a row that the engine fails on is answered."""
    engine = FakeEngine.from_bundle(open_bundle(small_bundle))
    poison, gate, started = 49, threading.Event(), threading.Event()

    def fail_on_poison(bucket: Bucket) -> None:
        started.set()
        gate.wait(10)
        if (engine.feeds(bucket)["input_ids"] == poison).any():
            raise MemoryError("no memory for this")

    engine.on_run = fail_on_poison
    batcher = batcher_on(engine)
    first = asyncio.ensure_future(batcher.run([row(4)]))
    await asyncio.to_thread(started.wait, 10)  # what comes now shares a batch
    bad = Row({"input_ids": np.full(4, poison, np.int32), "attention_mask": np.ones(4, np.int32)}, 4)
    jobs = [[row(4, 1)], [bad], [row(4, 2), bad], [row(4, 3)], [row(4, 4), row(4, 5)]]
    assert not any((one.feeds["input_ids"] == poison).any() for job in (0, 3, 4) for one in jobs[job])
    running = [asyncio.ensure_future(batcher.run(job)) for job in jobs]
    await arrived()
    gate.set()
    results = await asyncio.gather(first, *running, return_exceptions=True)
    batcher.close()
    assert [isinstance(result, EngineError) for result in results] == [False, False, True, True, False, False]
    assert "MemoryError: no memory for this" in str(results[2])


async def test_an_error_that_fails_to_say_what_it_is_reaches_its_job(small_bundle: Path):
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise KeyError

    def fail(bucket: Bucket) -> None:
        raise Unspeakable

    engine = FakeEngine.from_bundle(open_bundle(small_bundle))
    engine.on_run = fail
    batcher = batcher_on(engine)
    async with asyncio.timeout(10):
        with pytest.raises(EngineError, match="Unspeakable .to say more failed with KeyError."):
            await batcher.run([row(4)])
    batcher.close()


async def test_to_seek_a_culprit_is_not_one_long_run(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Each run has the limit to itself: half a dozen that are within it are no engine that hangs."""
    engine = FakeEngine.from_bundle(open_bundle(small_bundle))
    batcher = batcher_on(engine)
    now, busy, sizes = [100.0], list[float](), list[str]()
    monkeypatch.setattr("engine.batching.flight.time", SimpleNamespace(monotonic=lambda: now[0]))

    def fail_slowly(bucket: Bucket) -> None:
        busy.append(batcher.busy_s)
        sizes.append(batcher.running)
        now[0] += 40
        raise MemoryError("no memory for this")

    engine.on_run = fail_slowly
    with pytest.raises(EngineError, match="no memory for this"):
        await batcher.run([row(4, seed) for seed in range(4)])
    batcher.close()
    assert busy == [0.0] * 7
    assert sizes == [
        f"{count} up to 4 long" for count in ("4 rows", "2 rows", "1 row", "1 row", "2 rows", *["1 row"] * 2)
    ]
    assert batcher.stats.summary()["stages_ms"]["run"]["p50"] == 7 * 40e3


class _Recorded(FakeEngine):
    """Keeps the order in which its slots are filled, started and finished."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.events: list[str] = []
        super().__init__(*args, **options)

    def feeds(self, bucket: Bucket, slot: int = 0) -> Arrays:
        self.events.append(f"fill {slot}")
        return super().feeds(bucket, slot)

    def start(self, bucket: Bucket, slot: int = 0) -> None:
        self.events.append(f"start {slot}")
        super().start(bucket, slot)

    def finish(self, slot: int = 0) -> Arrays:
        self.events.append(f"finish {slot}")
        return super().finish(slot)


async def test_with_two_slots_a_whole_batch_is_filled_while_another_runs(small_bundle: Path):
    engine = _Recorded.from_bundle(open_bundle(small_bundle), slots=2)
    batcher = batcher_on(engine)
    await batcher.run([row(4, seed) for seed in range(20)])  # two whole batches of 8, then 4 rows that are not one
    batcher.close()
    events = [event for event in engine.events if not event.startswith("fill")]
    assert events == ["start 0", "finish 0", "start 1", "finish 1", "start 0", "finish 0"]
    filled = [engine.events.index("fill 1"), len(engine.events) - engine.events[::-1].index("fill 0") - 1]
    assert filled[0] < engine.events.index("finish 0")  # a whole batch: before the one that runs is waited for
    assert filled[1] > engine.events.index("finish 1")  # the rest might still have grown


async def test_with_two_slots_a_failing_row_leaves_the_batch_behind_it_alone(small_bundle: Path):
    engine = FakeEngine.from_bundle(open_bundle(small_bundle), slots=2)
    poison = 49

    def fail_on_poison(bucket: Bucket) -> None:
        if (engine.feeds(bucket, engine.running)["input_ids"] == poison).any():
            raise MemoryError("no memory for this")

    engine.on_run = fail_on_poison
    batcher = batcher_on(engine)
    good = [row(4, seed) for seed in range(200) if not (row(4, seed).feeds["input_ids"] == poison).any()][:63]
    bad = Row({"input_ids": np.full(4, poison, np.int32), "attention_mask": np.ones(4, np.int32)}, 4)
    jobs = [[one] for one in (*good[:20], bad, *good[20:])]
    results = await asyncio.gather(*(batcher.run(job) for job in jobs), return_exceptions=True)
    batcher.close()
    assert [index for index, result in enumerate(results) if isinstance(result, BaseException)] == [20]
    engine.on_run = lambda bucket: None
    for job, result in zip(jobs, results, strict=True):
        if not isinstance(result, BaseException):
            assert np.allclose(result[0]["embedding"], run_rows(engine, job)[0]["embedding"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("slots", [1, 2])
async def test_a_row_that_is_not_finite_fails_its_own_job_only(small_bundle: Path, slots: int):
    """A task that takes the largest of NaNs would answer with a label."""

    class Broken(FakeEngine):
        def finish(self, slot: int = 0) -> Arrays:
            outputs = super().finish(slot)
            for row in range(bucket_rows(outputs)):
                if outputs["embedding"][row, 0] == first_of_bad:
                    outputs["embedding"][row, 1] = np.nan
            return outputs

    def bucket_rows(outputs: Arrays) -> int:
        return len(outputs["embedding"])

    engine = Broken.from_bundle(open_bundle(small_bundle), slots=slots)
    first_of_bad = np.inf
    first_of_bad = run_rows(engine, [row(4, 3)])[0]["embedding"][0]
    batcher = batcher_on(engine)
    results = await asyncio.gather(*(batcher.run([row(4, seed)]) for seed in range(12)), return_exceptions=True)
    batcher.close()
    assert [index for index, result in enumerate(results) if isinstance(result, EngineError)] == [3]
    assert "'embedding' holds NaN or infinity for item 0" in str(results[3])


async def test_a_cancelled_job_settles_nothing_and_the_rest_goes_on(small_bundle: Path):
    gate, started = threading.Event(), threading.Event()
    engine = FakeEngine.from_bundle(open_bundle(small_bundle))

    def hold(bucket: Bucket) -> None:
        started.set()
        gate.wait(10)

    engine.on_run = hold
    batcher = batcher_on(engine)
    running = asyncio.ensure_future(batcher.run([row(4)]))
    await asyncio.to_thread(started.wait, 10)
    waiting, kept = asyncio.ensure_future(batcher.run([row(5)])), asyncio.ensure_future(batcher.run([row(6)]))
    await arrived()
    running.cancel()
    waiting.cancel()
    await arrived()
    gate.set()
    assert len(await kept) == 1
    batcher.close()
    assert batcher.stats.rows == 2  # the row that ran already, and the kept one


@pytest.mark.parametrize("how", ["cancelled", "two rows that are not finite"])
async def test_a_job_that_has_ended_hears_nothing_of_its_further_rows(small_bundle: Path, how: str):
    class Failing(FakeEngine):
        def finish(self, slot: int = 0) -> Arrays:
            outputs = super().finish(slot)
            started.set()
            gate.wait(10)
            if how != "cancelled":
                outputs["embedding"][:] = np.nan
            return outputs

    gate, started, told = threading.Event(), threading.Event(), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    batcher = batcher_on(Failing.from_bundle(open_bundle(small_bundle)))
    job = asyncio.ensure_future(batcher.run([row(4, seed) for seed in range(20)], told.append))
    alone = asyncio.ensure_future(batcher.run([row(4)]))
    await asyncio.to_thread(started.wait, 10)
    if how == "cancelled":
        job.cancel()
        alone.cancel()
        await arrived()
    gate.set()
    batcher.close()  # here: all that the engine's thread says is heard at once
    assert {type(one) for one in await asyncio.gather(job, alone, return_exceptions=True)} == {
        asyncio.CancelledError if how == "cancelled" else EngineError
    }
    await arrived()
    assert told == []


async def test_overload_is_refused_at_the_door(small_bundle: Path):
    gate = threading.Event()
    engine = FakeEngine.from_bundle(open_bundle(small_bundle))

    def hold(bucket: Bucket) -> None:
        gate.wait(10)

    engine.on_run = hold
    batcher = batcher_on(engine, max_queued=4)
    running = asyncio.ensure_future(batcher.run([row(4)]))
    await asyncio.sleep(0.05)
    waiting = asyncio.ensure_future(batcher.run([row(4)]))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await batcher.run([row(4)] * 4)
    with pytest.raises(InvalidInput, match="the job makes 5 rows, allowed are 4"):
        await batcher.run([row(4)] * 5)
    gate.set()
    await asyncio.gather(running, waiting)
    batcher.close()


@pytest.mark.parametrize("slots", [1, 2])
async def test_closing_fails_what_waits(small_bundle: Path, slots: int):
    gate, started = threading.Event(), threading.Event()
    engine = FakeEngine.from_bundle(open_bundle(small_bundle), slots=slots)

    def hold(bucket: Bucket) -> None:
        started.set()
        gate.wait(10)

    engine.on_run = hold
    batcher = batcher_on(engine)
    running = asyncio.ensure_future(batcher.run([row(4)]))
    await asyncio.to_thread(started.wait, 10)
    waiting = asyncio.ensure_future(batcher.run([row(4)]))
    await arrived()
    closing = asyncio.ensure_future(asyncio.to_thread(batcher.close))
    while not batcher._closed:
        await asyncio.sleep(0)
    gate.set()
    await closing
    assert len(await running) == 1
    with pytest.raises(EngineError, match="shutting down"):
        await waiting
    with pytest.raises(EngineError, match="closed"):
        await batcher.run([row(4)])


async def test_rows_of_one_size_run_few_at_a_time_on_the_cpu(tmp_path: Path, small_bundle: Path):
    """A batch of 32 large images would take minutes there, and ENGINE_TIMEOUT_S would end the worker."""
    graph = open_bundle(small_bundle).manifest.graphs["model"]
    images = [replace(spec, shape=("batch", 16)) for spec in graph.inputs]
    bundle = open_bundle(
        write_small_bundle(tmp_path / "images", graphs={"model": replace(graph, inputs=tuple(images))})
    )
    engine = OnnxRuntimeEngine(bundle, threads=2, lanes=True)
    assert [engine.best_tokens, *(lane.best_tokens for lane in engine.open_lanes())] == [4, 2, 2]
    batcher = Batcher(engine, max_rows=32, max_tokens=0, max_queued=100)
    image = replace(row(16), length=1)
    assert len(await batcher.run([image] * 20)) == 20
    batcher.close()
    assert max(batcher.stats.batch_sizes) == 4


def test_one_batcher_serves_several_event_loops(engine: Engine):
    batcher = batcher_on(engine)
    for _ in range(3):
        assert len(asyncio.run(batcher.run([row(4)]))) == 1
    batcher.close()


def test_an_event_loop_that_ends_before_its_rows_costs_nobody_else_anything(small_bundle: Path):
    engine = FakeEngine.from_bundle(open_bundle(small_bundle))
    gate, started = threading.Event(), threading.Event()

    def hold(bucket: Bucket) -> None:
        started.set()
        gate.wait(10)

    engine.on_run = hold
    batcher = batcher_on(engine)

    async def leave() -> None:
        leaving.append(asyncio.ensure_future(batcher.run([row(4), row(5)])))
        assert await asyncio.to_thread(started.wait, 10)

    leaving: list[asyncio.Future[Any]] = []
    asyncio.run(leave())
    assert leaving[0].cancelled()
    gate.set()
    assert len(asyncio.run(batcher.run([row(4)]))) == 1
    batcher.close()


def test_a_run_allocates_nothing_but_the_reply(small_bundle: Path):
    """Counted by numpy's own domain in tracemalloc: per row its copied outputs, whatever the size of the batch."""
    engine = OnnxRuntimeEngine(open_bundle(small_bundle))
    domain = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
    batches = {size: [row(1 + index % 8, seed=index) for index in range(size)] for size in (1, 8, 32)}
    for rows in batches.values():
        run_rows(engine, rows)  # binds the bucket

    def allocated(rows: list[Row]) -> tuple[int, int]:
        tracemalloc.start()
        try:
            kept = run_rows(engine, rows)
            found = tracemalloc.take_snapshot().filter_traces([domain]).statistics("filename")
            assert len(kept) == len(rows)
            return sum(entry.count for entry in found), sum(entry.size for entry in found)
        finally:
            tracemalloc.stop()

    for size, rows in batches.items():
        assert allocated(rows) == (size, size * DIMENSION * 4)


@pytest.mark.parametrize("slots", [1, 2])
async def test_a_lost_engine_fails_what_it_holds_and_runs_nothing_again(small_bundle: Path, slots: int):
    engine = FakeEngine.from_bundle(open_bundle(small_bundle), slots=slots)
    runs: list[Bucket] = []
    said: list[str] = []
    gate, started = threading.Event(), threading.Event()

    def break_down(bucket: Bucket) -> None:
        runs.append(bucket)
        started.set()
        gate.wait(10)
        raise EngineLost("the device has fallen off the bus")

    engine.on_run = break_down
    batcher = batcher_on(engine)
    batcher.on_lost = said.append
    first = asyncio.ensure_future(batcher.run([row(4), row(5)]))
    await asyncio.to_thread(started.wait, 10)
    waiting = [asyncio.ensure_future(batcher.run([row(4, seed)])) for seed in range(20)]
    await arrived()
    gate.set()
    results = await asyncio.gather(first, *waiting, return_exceptions=True)
    assert {type(result) for result in results} == {EngineLost}
    # Neither its halves nor what waited; with two slots a batch may have been handed over before.
    assert len(runs) <= slots
    with pytest.raises(EngineLost, match="off the bus"):
        await batcher.run([row(4)])
    batcher.close()
    assert said == ["the device has fallen off the bus"]


async def test_a_batch_that_was_filled_when_the_engine_was_lost_is_not_run(small_bundle: Path):
    engine = FakeEngine.from_bundle(open_bundle(small_bundle), slots=2)
    runs: list[int] = []
    gate, started = threading.Event(), threading.Event()

    def break_down(bucket: Bucket) -> None:
        runs.append(bucket.batch)
        started.set()
        gate.wait(10)
        if len(runs) == 2:
            raise EngineLost("the device has fallen off the bus")

    engine.on_run = break_down
    batcher = batcher_on(engine)
    first = asyncio.ensure_future(batcher.run([row(4)]))
    await asyncio.to_thread(started.wait, 10)
    waiting = [asyncio.ensure_future(batcher.run([row(4, seed)])) for seed in range(24)]  # three whole batches
    await arrived()
    gate.set()
    assert len(await first) == 1
    results = await asyncio.gather(*waiting, return_exceptions=True)
    batcher.close()
    assert {str(result) for result in results} == {"the device has fallen off the bus"}
    assert runs == [1, 8]


async def test_an_engine_that_is_lost_while_the_culprit_is_sought_runs_nothing_again(small_bundle: Path):
    engine = FakeEngine.from_bundle(open_bundle(small_bundle))
    runs: list[int] = []
    gate, started = threading.Event(), threading.Event()

    def break_down(bucket: Bucket) -> None:
        runs.append(bucket.batch)
        started.set()
        gate.wait(10)
        if bucket.batch > 1:
            raise EngineError("no") if bucket.batch == 8 else EngineLost("gone")

    engine.on_run = break_down
    batcher = batcher_on(engine)
    first = asyncio.ensure_future(batcher.run([row(4)]))
    await asyncio.to_thread(started.wait, 10)  # what comes now shares a batch
    others = [asyncio.ensure_future(batcher.run([row(4, seed)])) for seed in range(8)]
    await arrived()
    gate.set()
    assert len(await first) == 1
    results = await asyncio.gather(*others, return_exceptions=True)
    batcher.close()
    assert {(type(result), str(result)) for result in results} == {(EngineLost, "gone")}
    assert runs == [1, 8, 4]


async def test_an_answer_that_cannot_be_handed_out_fails_its_job_and_the_thread_lives(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    """Here outputs of too few rows; the copies may also find no memory."""
    engine = FakeEngine.from_bundle(open_bundle(small_bundle))
    finish, broken = engine.finish, [True]

    def finish_short(slot: int = 0) -> Arrays:
        return {name: values[: len(values) - 1 if broken else None] for name, values in finish(slot).items()}

    monkeypatch.setattr(engine, "finish", finish_short)
    batcher = batcher_on(engine)
    results = await asyncio.gather(*(batcher.run([row(4, seed)]) for seed in range(4)), return_exceptions=True)
    assert any(isinstance(result, EngineError) and "IndexError" in str(result) for result in results)
    broken.clear()
    assert len(await asyncio.wait_for(batcher.run([row(4)]), 10)) == 1
    batcher.close()
