"""Batches side by side: on the fake engine, where a run waits for another one, and on ONNX Runtime."""

import asyncio
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.backends import load_engine
from engine.backends import onnxruntime as backend
from engine.backends.fake import FakeEngine
from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.batching.batcher import Batcher
from engine.batching.feed import run_rows
from engine.bucket import Bucket
from engine.bundle import open_bundle, write_manifest
from engine.config import Settings
from engine.errors import EngineError, EngineLost
from engine.probe import cpu_quota
from engine.select import Choice
from export.bundle_folder import changed_bundle_folder
from tests.bundles import move_weights_out
from tests.contract.test_engine import let_go, row

CPUS = sorted(os.sched_getaffinity(0))
PATIENCE_S = 20.0


class Lanes:
    """A batcher on a fake engine with lanes; `on_run` is called in each run with its bucket."""

    def __init__(self, bundle: Path, lanes: int = 2) -> None:
        self.on_run: Callable[[Bucket], None] = lambda bucket: None
        self.threads: list[str] = []
        """The thread of each run."""
        self.said: list[str] = []
        self.engine = FakeEngine.from_bundle(open_bundle(bundle), lanes=lanes)
        self.engine.on_run = self._run
        self.batcher = Batcher(self.engine, max_rows=8, max_tokens=1000, max_queued=5000, say=self.said.append)

    def _run(self, bucket: Bucket) -> None:
        self.threads.append(threading.current_thread().name)
        self.on_run(bucket)

    async def open(self) -> None:
        """Push so many rows that the lanes are opened, and wait until they are."""
        await self.batcher.run([row(4)] * 9)
        while not self.said:
            await asyncio.sleep(0.001)
        self.threads.clear()


@pytest.fixture
async def lanes(small_bundle: Path) -> Lanes:
    made = Lanes(small_bundle)
    await made.open()
    return made


def meeting() -> Callable[[Bucket], None]:
    """What a run does that lasts until there is another one beside it."""
    both = threading.Barrier(2)

    def meet(bucket: Bucket) -> None:
        both.wait(PATIENCE_S)

    return meet


async def test_rows_that_come_one_by_one_open_none(small_bundle: Path):
    made = Lanes(small_bundle)
    for _ in range(3):
        await made.batcher.run([row(4)])
    made.batcher.close()
    assert made.said == []
    assert made.batcher._lane_threads == []


async def test_batches_run_at_the_same_time(lanes: Lanes):
    assert lanes.batcher.stats.summary()["lanes"] == 2
    lanes.on_run = meeting()
    answers = await lanes.batcher.run([row(4, seed) for seed in range(6)])
    lanes.on_run = lambda bucket: None
    assert lanes.said == ["batches run side by side from now on when 2 rows or more wait"]
    assert sorted(lanes.threads) == ["engine", "engine-2"]
    for seed, answer in enumerate(answers):
        assert np.array_equal(answer["embedding"], run_rows(lanes.engine, [row(4, seed)])[0]["embedding"])
    lanes.batcher.close()


async def test_lanes_that_wait_hold_nothing_of_the_jobs_before(lanes: Lanes):
    lanes.on_run = meeting()
    held = [weakref.ref(answer["embedding"]) for answer in await lanes.batcher.run([row(4)] * 6)]
    assert set(lanes.threads) == {"engine", "engine-2"}
    await let_go(held)
    lanes.batcher.close()


async def test_a_lone_row_runs_together_and_alone(lanes: Lanes):
    gate, started = threading.Event(), threading.Event()

    def hold(bucket: Bucket) -> None:
        started.set()
        assert gate.wait(PATIENCE_S)

    lanes.batcher._may_run_on_loops = False
    lanes.on_run = hold
    first = asyncio.ensure_future(lanes.batcher.run([row(4)]))
    assert await asyncio.to_thread(started.wait, PATIENCE_S)
    others = asyncio.ensure_future(lanes.batcher.run([row(4)] * 5))
    await asyncio.sleep(0.05)
    assert lanes.threads == ["engine"]  # nobody beside it
    assert lanes.batcher.busy_s > 0
    lanes.on_run = meeting()
    gate.set()
    await asyncio.gather(first, others)
    assert sorted(lanes.threads[1:]) == ["engine", "engine-2"]
    lanes.batcher.close()


async def test_no_row_runs_on_the_event_loop_beside_a_lane(small_bundle: Path):
    made, gate, begun = Lanes(small_bundle, lanes=3), threading.Event(), threading.Barrier(3)

    def hold(bucket: Bucket) -> None:
        if bucket.length >= 24:
            begun.wait(PATIENCE_S)
            assert threading.current_thread().name == "engine" or gate.wait(PATIENCE_S)

    await made.open()
    await made.batcher.run([row(4)])  # short, so that the next of its size might run on the loop
    made.threads.clear()
    made.on_run = hold
    first = asyncio.ensure_future(made.batcher.run([row(24)] * 3))  # one a lane; the engine thread's ends
    async with asyncio.timeout(PATIENCE_S):
        while len(made.threads) < 3 or 1 in made.batcher._lanes._running:
            await asyncio.sleep(0.001)
        await made.batcher.run([row(4)])
    assert made.threads[3:] == ["engine"]
    gate.set()
    await first
    made.batcher.close()


async def test_a_lane_that_hangs_is_busy_while_the_other_goes_on(lanes: Lanes, monkeypatch: pytest.MonkeyPatch):
    gate, stuck, now, seen = threading.Event(), threading.Event(), [100.0], list[tuple[float, str]]()
    monkeypatch.setattr("engine.batching.flight.time", SimpleNamespace(monotonic=lambda: now[0]))

    def hang(bucket: Bucket) -> None:
        seen.append((lanes.batcher.busy_s, lanes.batcher.running))
        if bucket.length >= 24:
            stuck.set()
            assert gate.wait(PATIENCE_S)

    lanes.on_run = hang
    first = asyncio.ensure_future(lanes.batcher.run([row(24), row(4)]))
    assert await asyncio.to_thread(stuck.wait, PATIENCE_S)
    await lanes.batcher.run([row(5)])  # behind the other row of the first job
    seen.clear()
    now[0] += 40
    for _ in range(3):
        await lanes.batcher.run([row(5)])
    assert seen == [(40.0, "1 row up to 24 long")] * 3
    assert lanes.batcher.busy_s == 40.0
    gate.set()
    await first
    assert lanes.batcher.busy_s == 0
    lanes.batcher.close()


async def test_a_lone_row_that_waits_for_all_lanes_runs_when_the_last_ends(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    made, gate, begun = Lanes(small_bundle, lanes=3), threading.Event(), threading.Barrier(3)
    share, asked = made.batcher._lanes.share, set[tuple[str, int]]()

    def noted(lane: int, waiting: int) -> int:
        asked.add((threading.current_thread().name, waiting))
        return share(lane, waiting)

    def hold(bucket: Bucket) -> None:
        if bucket.length >= 24:
            begun.wait(PATIENCE_S)
            assert threading.current_thread().name != "engine-2" or gate.wait(PATIENCE_S)

    await made.open()
    made.on_run = hold
    first = asyncio.ensure_future(made.batcher.run([row(24)] * 3))  # one a lane; that of engine-2 goes on
    async with asyncio.timeout(PATIENCE_S):
        while len(made.threads) < 3 or len(made.batcher._lanes._running) > 1:
            await asyncio.sleep(0.001)
        monkeypatch.setattr(made.batcher._lanes, "share", noted)
        lone = asyncio.ensure_future(made.batcher.run([row(4)]))
        while ("engine", 1) not in asked:  # its thread, and was told to wait
            await asyncio.sleep(0.001)
        gate.set()
        await asyncio.gather(first, lone)
    assert made.threads[3:] == ["engine"]
    made.batcher.close()


async def test_a_poisoned_row_fails_its_own_job_only(lanes: Lanes):
    def poisoned(bucket: Bucket) -> None:
        if bucket.length >= 24:
            raise EngineError("cannot")

    lanes.on_run = poisoned
    jobs = [lanes.batcher.run([row(24 if job % 4 == 0 else 1 + job, seed=job)] * 3) for job in range(12)]
    answers = await asyncio.gather(*jobs, return_exceptions=True)
    lanes.batcher.close()
    failed = [isinstance(answer, EngineError) for answer in answers]
    assert failed == [job % 4 == 0 for job in range(12)]


async def test_one_lost_engine_ends_them_all(lanes: Lanes):
    told: list[str] = []
    there = threading.Event()

    def lose(bucket: Bucket) -> None:
        if threading.current_thread().name == "engine-2":
            there.set()
            raise EngineLost("gone")
        assert there.wait(PATIENCE_S)
        while not lanes.batcher._flights.lost:
            time.sleep(0.001)  # and then answer: who knows what with

    lanes.batcher.on_lost = told.append
    lanes.on_run = lose
    jobs = [lanes.batcher.run([row(4)]) for _ in range(16)]
    answers = await asyncio.gather(*jobs, return_exceptions=True)
    assert {type(answer) for answer in answers} == {EngineLost}
    with pytest.raises(EngineLost, match="gone"):
        await lanes.batcher.run([row(4)])
    lanes.batcher.close(PATIENCE_S)
    assert told == ["gone"]
    assert not any(thread.is_alive() for thread in (lanes.batcher._thread, *lanes.batcher._lane_threads))


async def test_where_they_cannot_be_opened_everything_goes_on(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    made = Lanes(small_bundle)

    def refuse() -> Any:
        raise EngineError("no room")

    monkeypatch.setattr(made.engine, "open_lanes", refuse)
    await made.open()
    assert made.said == ["batches go on running one after the other: no room"]
    assert len(await made.batcher.run([row(4)] * 20)) == 20
    assert set(made.threads) == {"engine"}
    assert made.said[1:] == []  # tried once
    made.batcher.close()


@pytest.mark.parametrize("lacking", ["engine-lanes", "engine-2"])
async def test_where_there_is_no_room_for_a_thread(small_bundle: Path, monkeypatch: pytest.MonkeyPatch, lacking: str):
    made, start = Lanes(small_bundle), threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == lacking:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(3):
        assert len(await made.batcher.run([row(4)] * 20)) == 20
    made.batcher.close(PATIENCE_S)
    assert not made.batcher._thread.is_alive()
    assert set(made.threads) == {"engine"}
    assert (
        made.said
        == {
            "engine-lanes": [],
            "engine-2": ["batches go on running one after the other: can't start new thread"],
        }[lacking]
    )


async def test_closing_waits_for_lanes_that_are_being_opened(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    made = Lanes(small_bundle)
    opening, gate, closed, really = threading.Event(), threading.Event(), [], made.engine.open_lanes

    class Noted(FakeEngine):
        def close(self) -> None:
            closed.append(self)

    def slowly() -> Any:
        opening.set()
        assert gate.wait(PATIENCE_S)
        return [Noted(made.engine.inputs, made.engine.outputs) for _ in really()]

    monkeypatch.setattr(made.engine, "open_lanes", slowly)
    await made.batcher.run([row(4)] * 3)
    assert await asyncio.to_thread(opening.wait, PATIENCE_S)
    closing = asyncio.ensure_future(asyncio.to_thread(made.batcher.close))
    await asyncio.sleep(0.02)
    gate.set()
    await closing
    assert len(closed) == 2
    assert not any(thread.is_alive() for thread in (made.batcher._thread, *made.batcher._lane_threads))


async def test_many_jobs_at_once_are_all_answered(small_bundle: Path):
    """As many lanes as ever run, jobs of every size, cancels between: the counts and every answer are right."""
    made = Lanes(small_bundle, lanes=4)
    await made.open()
    before = made.batcher.stats.rows
    rng = np.random.default_rng(0)
    jobs = []
    for job in range(120):
        rows = [row(int(rng.integers(1, 30)), seed=job) for _ in range(int(rng.integers(1, 12)))]
        jobs.append((rows, asyncio.ensure_future(made.batcher.run(rows))))
        if job % 10 == 9:
            await asyncio.sleep(0)
            jobs.pop()[1].cancel()
    answers = await asyncio.gather(*(future for _, future in jobs))
    for (rows, _), of_job in zip(jobs, answers, strict=True):
        for one, answer in zip(rows, of_job, strict=True):
            assert np.array_equal(answer["embedding"], run_rows(made.engine, [one])[0]["embedding"])
    made.batcher.close()
    assert made.batcher.stats.rows - before >= sum(len(rows) for rows, _ in jobs)


# ONNX Runtime


def runs(engine: OnnxRuntimeEngine, said: list[str] | None = None) -> Batcher:
    return Batcher(engine, max_rows=8, max_tokens=0, max_queued=500, say=(said if said is not None else []).append)


async def opened(batcher: Batcher, said: list[str]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not said:
            await batcher.run([row(4)] * (9 + len(CPUS)))  # as many as there may be lanes


async def test_onnxruntime_answers_the_same_in_lanes(small_bundle: Path):
    said: list[str] = []
    engine = OnnxRuntimeEngine(open_bundle(small_bundle), threads=3, lanes=True)
    batcher = runs(engine, said)
    await opened(batcher, said)
    rows = [row(1 + seed % 30, seed) for seed in range(200)]
    answers = await batcher.run(rows)
    assert {thread.name for thread in batcher._lane_threads} == {"engine-lanes", "engine-2", "engine-3"}
    for one, answer in zip(rows, answers, strict=True):
        alone = run_rows(engine, [one])[0]["embedding"]
        np.testing.assert_allclose(answer["embedding"], alone, rtol=1e-5, atol=1e-6)
    batcher.close()


@pytest.mark.skipif(cpu_quota() != len(CPUS) or len(CPUS) < 2, reason="needs two CPUs without a quota")
async def test_each_lane_keeps_to_a_cpu_of_its_own(small_bundle: Path):
    said: list[str] = []
    batcher = runs(OnnxRuntimeEngine(open_bundle(small_bundle), threads=len(CPUS), lanes=True), said)
    await opened(batcher, said)
    threads = [batcher._thread, *(thread for thread in batcher._lane_threads if thread.name != "engine-lanes")]
    async with asyncio.timeout(PATIENCE_S):
        while [os.sched_getaffinity(thread.native_id or 0) for thread in threads] != [{cpu} for cpu in CPUS]:
            await asyncio.sleep(0.001)  # until the last thread has begun
    batcher.close()


@pytest.mark.parametrize("options", [{"threads": 1, "lanes": True}, {"threads": 2, "lanes": False}])
async def test_without_lanes_to_open(small_bundle: Path, options: dict[str, Any]):
    engine = OnnxRuntimeEngine(open_bundle(small_bundle), **options)
    assert engine.lanes == 0


async def test_too_little_memory_for_a_second_copy(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "memory_left", lambda: 10)
    said: list[str] = []
    batcher = runs(OnnxRuntimeEngine(open_bundle(small_bundle), threads=2, lanes=True), said)
    await opened(batcher, said)
    (line,) = said
    assert line.startswith("batches go on running one after the other: a second copy of the weights takes ")
    batcher.close()


@pytest.mark.parametrize("how", ["another link", "another folder", "weights written to", "while it is opened"])
async def test_a_bundle_that_was_exchanged_since_gives_no_lanes(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    """A redeploy on the volume: what answers lone rows was compared with the manifest, what lies there now was not."""
    move_weights_out(small_bundle)
    served, other = tmp_path / "current", tmp_path / "next"
    served.symlink_to(small_bundle)
    shutil.copytree(small_bundle, other)  # with its times
    weights = other / "graphs/model/weights.bin"
    modified = weights.stat().st_mtime_ns
    weights.write_bytes(bytes(weights.stat().st_size))
    os.utime(weights, ns=(modified, modified))
    said: list[str] = []
    engine = OnnxRuntimeEngine(open_bundle(served), threads=2, lanes=True)
    alone = run_rows(engine, [row(4)])[0]["embedding"].copy()

    def exchange() -> None:
        if how == "another folder":
            shutil.rmtree(small_bundle)
            other.rename(small_bundle)
        elif how == "weights written to":
            os.utime(small_bundle / "graphs/model/weights.bin")  # not cut: they are mapped
        else:
            served.unlink()
            served.symlink_to(other)

    if how == "while it is opened":
        opens = engine._open

        def exchanged(*options: Any) -> Any:
            exchange()
            return opens(*options)

        monkeypatch.setattr(engine, "_open", exchanged)
    else:
        exchange()
    batcher = runs(engine, said)
    await opened(batcher, said)
    assert said == [
        f"batches go on running one after the other: the bundle at {served} is another one now; start the worker again "
        "to serve that one"
    ]
    for answer in await batcher.run([row(4)] * 9):
        np.testing.assert_allclose(answer["embedding"], alone, rtol=1e-5)
    batcher.close()


async def test_plans_that_were_added_since_are_no_reason_against_lanes(small_bundle: Path):
    move_weights_out(small_bundle)
    said: list[str] = []
    before = set(os.listdir("/proc/self/fd"))
    engine = OnnxRuntimeEngine(open_bundle(small_bundle), threads=2, lanes=True)
    with changed_bundle_folder(small_bundle) as folder:
        (folder / "graphs/model/new.plan").write_bytes(b"new")
        write_manifest(folder, open_bundle(folder).manifest)
    batcher = runs(engine, said)
    await opened(batcher, said)
    assert said == ["batches run side by side from now on when 2 rows or more wait"]
    batcher.close()
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("cpu_lanes", [True, False])
def test_lanes_threads_and_rows_are_those_of_the_settings(small_bundle: Path, cpu_lanes: bool):
    settings = Settings(threads=3, cpu_lanes=cpu_lanes, max_batch_rows=5)
    engine = load_engine(Choice("onnxruntime-cpu", ""), open_bundle(small_bundle), settings)
    assert (engine.lanes, engine.buckets.largest.batch) == (3 if cpu_lanes else 0, 5)
    engine.close()


def test_the_shapes_that_are_bound_are_bounded(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "MOST_BINDINGS", 3)
    engine, other = (OnnxRuntimeEngine(open_bundle(small_bundle), threads=1) for _ in range(2))
    for length in (1, 2, 3, 4, 1, 5, 2):
        found, expected = (run_rows(one, [row(length, seed=length)])[0] for one in (engine, other))
        np.testing.assert_array_equal(found["embedding"], expected["embedding"])
    assert list(engine._bindings) == [Bucket(1, 1), Bucket(1, 5), Bucket(1, 2)]


def test_outputs_that_the_graph_has_not_are_an_engines_error(small_bundle: Path):
    bundle = open_bundle(small_bundle)
    described = bundle.manifest.graphs["model"]
    renamed = replace(described, outputs=tuple(replace(spec, name="other") for spec in described.outputs))
    bundle = replace(bundle, manifest=replace(bundle.manifest, graphs={"model": renamed}))
    engine = OnnxRuntimeEngine(bundle, threads=1)
    with pytest.raises(EngineError, match=r"ONNX Runtime failed at .*: Failed to find NodeArg with name: other"):
        engine.run(Bucket(1, 4))
