"""ONNX Runtime's threads each keep to a CPU of their own, where the process has as many of them as threads."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.batching.batcher import Batcher
from engine.bundle import open_bundle
from engine.probe import cpu_quota
from tests.contract.test_engine import row

CPUS = sorted(os.sched_getaffinity(0))
needs_two = pytest.mark.skipif(cpu_quota() != len(CPUS) or len(CPUS) < 2, reason="needs two CPUs without a quota")


def affinities() -> dict[int, set[int]]:
    """What the scheduler may choose for each thread of this process, by the thread's id."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # one of an earlier test, which ends just now
            found[int(task.name)] = os.sched_getaffinity(int(task.name))
    return found


async def affinities_of(bundle: Path, threads: int) -> tuple[set[int], list[set[int]]]:
    """That of the thread which calls the engine, and those of the threads that the engine started."""
    before = affinities()
    batcher = Batcher(
        OnnxRuntimeEngine(open_bundle(bundle), threads=threads), max_rows=8, max_tokens=1000, max_queued=100
    )
    caller = batcher._thread.native_id
    for _ in range(20):  # a thread of the engine's chooses its CPU when it begins, which may be after the first row
        await batcher.run([row(4)])
        await asyncio.sleep(0.005)
    now = affinities()
    batcher.close()
    assert caller is not None
    return now[caller], [now[each] for each in now.keys() - before.keys() - {caller}]


@needs_two
async def test_as_many_cpus_as_threads(small_bundle: Path):
    caller, others = await affinities_of(small_bundle, len(CPUS))
    assert caller == {CPUS[0]}
    assert sorted(map(tuple, others)) == [(cpu,) for cpu in CPUS[1:]]


@needs_two
async def test_with_cpus_to_spare_the_scheduler_chooses(small_bundle: Path):
    caller, others = await affinities_of(small_bundle, 1)
    assert caller == set(CPUS)
    assert others == []


@needs_two
async def test_a_cpu_that_was_taken_away_meanwhile_costs_no_job(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(pid: int, cpus: set[int]) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    caller, others = await affinities_of(small_bundle, len(CPUS))
    assert caller == set(CPUS)
    assert len(others) == len(CPUS) - 1
