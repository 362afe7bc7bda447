"""The TensorRT engine on doubles of CUDA and TensorRT: what the contract of engines does not ask."""

import asyncio
import gc
import re
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.backends.tensorrt import TensorRtEngine
from engine.batching.batcher import Batcher
from engine.batching.feed import load, run_rows, unload
from engine.batching.flight import Flights
from engine.bucket import Bucket, Ladder
from engine.bundle import open_bundle
from engine.errors import EngineError, EngineLost, OutOfMemory
from engine.plans.sidecar import Profile, plans_of
from engine.tensors import Array, Row
from tests.bundles import write_small_bundle
from tests.contract.test_engine import row
from tests.cuda_double import CUresult, Device, installed
from tests.plans import BATCHES, LENGTHS, add_plan, profile_a_length, profiles
from tests.tensorrt_double import POISON, TensorRtDouble, engine_on_double, plan_bytes

PINNED_AND_DEVICE = ("cuMemAlloc", "cuMemHostAlloc")


def warm(folder: Path, **options: Any) -> TensorRtEngine:
    engine = engine_on_double(folder, **options)
    engine.warm_up()
    return engine


def answers(engine: TensorRtEngine, rows: list[Row]) -> Array:
    return np.stack([one["embedding"] for one in run_rows(engine, rows)])


def answers_at_every_bucket(engine: TensorRtEngine) -> bool:
    return all(len(answers(engine, [row(b.length)] * b.batch)) == b.batch for b in engine.buckets)


def bytes_on(device: Device) -> int:
    return sum(map(len, device.memory.values()))


def test_it_answers_as_onnx_runtime_does_at_every_bucket(small_bundle: Path):
    reference = OnnxRuntimeEngine(open_bundle(small_bundle))
    engine = warm(small_bundle)
    assert not engine.notes
    for bucket in engine.buckets:
        rows = [row(max(1, bucket.length - index), seed=index) for index in range(bucket.batch)]
        expected = [one["embedding"] for one in run_rows(reference, rows)]
        np.testing.assert_allclose(answers(engine, rows), expected, rtol=1e-6)
    engine.close()


def test_a_run_is_one_call_and_one_wait(small_bundle: Path):
    device = Device()
    engine = warm(small_bundle, device=device)
    device.calls.clear()
    engine.start(Bucket(4, 16))
    engine.finish()
    assert device.calls == ["cuGraphLaunch", "cuEventRecord", "cuEventSynchronize"]
    engine.close()


def test_replay_equals_plain_enqueue_bit_for_bit(tmp_path: Path):
    device = Device()
    trt = TensorRtDouble(device)
    captured = warm(write_small_bundle(tmp_path / "a"))
    trt.refuse_to_capture = True
    plain = warm(write_small_bundle(tmp_path / "b"), device=device, trt=trt)
    rows = [row(length, seed=length) for length in (1, 7, 20, 32)]
    assert np.array_equal(answers(captured, rows), answers(plain, rows))
    assert plain.notes == [
        "9 of 9 buckets run without a CUDA graph: TensorRT does not run Bucket(batch=8, length=32): "
        "operation not permitted when stream is capturing"
    ]


def test_one_slot_is_filled_while_the_other_runs(small_bundle: Path):
    engine = warm(small_bundle)
    first, second = [row(8, seed=1)], [row(30, seed=2), row(31, seed=3)]
    alone = [answers(engine, rows) for rows in (first, second)]
    engine.start(load(engine, first, 0), 0)
    engine.start(load(engine, second, 1), 1)
    assert np.array_equal(unload(engine.finish(0), 1)[0]["embedding"], alone[0][0])
    results = engine.finish(1)
    engine.start(load(engine, first, 0), 0)  # the answers of the other slot stay as they are
    engine.finish(0)
    assert np.array_equal([one["embedding"] for one in unload(results, 2)], alone[1])
    engine.close()


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 32), st.integers(0, 1)), min_size=1, max_size=60))
def test_after_warm_up_nothing_is_allocated_whatever_the_mix(tmp_path_factory: Any, mix: list[tuple[int, int, int]]):
    device = Device()
    engine = warm(write_small_bundle(tmp_path_factory.mktemp("mix") / "bundle"), device=device)
    counted, pinned = engine.allocations, len(device.pinned)
    assert counted
    device.calls.clear()
    for count, length, slot in mix:
        run_rows(engine, [row(length, seed=index) for index in range(count)], slot)
    assert engine.allocations == counted
    assert len(device.pinned) == pinned
    assert not [name for name in device.calls if name in PINNED_AND_DEVICE]
    engine.close()
    assert not device.memory
    assert not device.pinned
    assert all(graph.destroyed for graph in device.graphs)


async def test_a_row_alone_need_not_wait_for_the_engines_thread(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """As tests/contract/test_lone_rows.py has it: this engine computes on the GPU."""
    engine = warm(small_bundle)
    threads: list[int] = []
    start = engine.start

    def noting(bucket: Bucket, slot: int = 0) -> None:
        threads.append(threading.get_ident())
        start(bucket, slot)

    monkeypatch.setattr(engine, "start", noting)
    batcher = Batcher(engine, max_rows=8, max_tokens=1000, max_queued=100, on_loops=True)
    for _ in range(3):
        await batcher.run([row(4)])
        while batcher._lanes._running:
            await asyncio.sleep(0.001)
    batcher.close()
    assert threading.get_ident() in threads


def test_loaded_in_one_thread_and_run_in_another(small_bundle: Path):
    device = Device()
    engine = warm(small_bundle, device=device)
    expected = answers(engine, [row(5)])
    found = []

    def serve() -> None:
        found.append(answers(engine, [row(5)]))
        engine.close()

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert np.array_equal(found[0], expected)
    assert not device.memory
    assert not device.stack


# Profiles


@pytest.mark.parametrize("version", ["8.6.1", "10.13.0.35"])
def test_a_profile_a_bucket_needs_no_sharing(small_bundle: Path, version: str):
    device = Device()
    engine = warm(small_bundle, device=device, trt=TensorRtDouble(device, version))
    assert not engine.notes
    assert answers(engine, [row(9)] * 5).shape == (5, 8)


@pytest.mark.parametrize(("version", "sharing"), [("10.13.0.35", False), ("10.0.1", False), ("8.6.1", True)])
def test_a_profile_for_several_buckets_where_execution_contexts_share_it(
    small_bundle: Path, version: str, sharing: bool
):
    device = Device()
    trt = TensorRtDouble(device, version)
    engine = warm(small_bundle, device=device, trt=trt, profiles=profile_a_length(), profile_sharing=sharing)
    assert not engine.notes
    assert len(device.graphs) == 2 * len(engine.buckets)


def test_a_profile_for_several_buckets_where_they_do_not(tmp_path: Path):
    """TensorRT 8.6 gives the profile one execution context, which then changes shapes and cannot be captured."""
    device = Device()
    trt = TensorRtDouble(device, "8.6.1")
    engine = warm(write_small_bundle(tmp_path / "a"), device=device, trt=trt, profiles=profile_a_length())
    assert engine.notes == [
        "9 of 9 buckets run without a CUDA graph: they share optimization profiles, and TensorRT 8.6.1 gives each "
        "profile one execution context"
    ]
    assert not device.graphs
    captured = warm(write_small_bundle(tmp_path / "b"))
    for count, length in ((1, 9), (8, 9), (4, 30), (1, 9), (2, 1)):
        rows = [row(length, seed=index) for index in range(count)]
        assert np.array_equal(answers(engine, rows), answers(captured, rows))


def test_a_shared_execution_context_is_not_changed_while_it_runs(tmp_path: Path):
    device = Device()
    engine = warm(
        write_small_bundle(tmp_path / "a"),
        device=device,
        trt=TensorRtDouble(device, "8.6.1"),
        profiles=profile_a_length(),
    )
    reference = warm(write_small_bundle(tmp_path / "b"))
    first, second = [row(9)], [row(9, seed=index) for index in range(1, 9)]
    engine.start(load(engine, first, 0), 0)
    engine.start(load(engine, second, 1), 1)
    for slot, rows in enumerate((first, second)):
        found = unload(engine.finish(slot), len(rows))
        assert np.array_equal([one["embedding"] for one in found], answers(reference, rows))


def test_only_the_buckets_that_a_worker_may_use_are_prepared(small_bundle: Path):
    device = Device()
    engine = warm(small_bundle, device=device, max_batch=3)
    assert engine.buckets.batches == (1, 4)
    assert len(device.graphs) == 2 * 2 * len(LENGTHS)
    assert warm(small_bundle, max_batch=100).buckets.batches == BATCHES


LARGE = {Bucket(8, 32)}
"""What no batch of at most 64 tokens comes to."""


@pytest.mark.parametrize("held_to", [64, 0])
def test_buckets_that_no_batch_comes_to_are_not_prepared(tmp_path: Path, held_to: int):
    """As MAX_BATCH_TOKENS says, or what was measured to suit the GPU."""
    latencies = tuple(bucket.tokens + 1000 * (bucket.tokens > 64) for bucket in Ladder(BATCHES, LENGTHS))
    device, other = Device(), Device()
    engine = warm(write_small_bundle(tmp_path / "a"), device=device, held_to=held_to, latencies_us=latencies)
    most = held_to or engine.best_tokens
    assert most <= 64
    fit, batches = Ladder(BATCHES, LENGTHS).fit, [(n, length) for n in range(1, 9) for length in range(1, 33)]
    formed = {fit(n, length) for n, length in batches if n == 1 or n * length <= most}
    assert set(engine.buckets) == formed
    assert len(device.graphs) == 2 * len(engine.buckets)
    whole = warm(write_small_bundle(tmp_path / "b"), device=other, latencies_us=latencies)
    assert set(whole.buckets) - formed >= LARGE
    if isinstance(device.memory, dict):  # of the double, where each engine has a device of its own
        assert bytes_on(device) < bytes_on(other)
    assert engine.notes == []


async def test_a_plan_without_large_buckets_is_given_no_large_batches(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whatever MAX_BATCH_TOKENS says; and a row alone runs, however long."""

    def fail(_: Flights, batch: list[Any], flight: Any, begin: float) -> None:
        for group, _row in batch:
            group.settle(flight.error)

    monkeypatch.setattr(Flights, "_find_culprits", fail)  # which would run such a batch in halves
    made = tuple(one for one in profiles() if not LARGE & set(one.buckets))
    engine = warm(small_bundle, profiles=made, max_tokens=64, held_to=1000)
    assert engine.notes == [
        "at most 64 tokens run at once, though MAX_BATCH_TOKENS=1000 allows more: sm_89-trt10.13.0-fp16.plan was built "
        "without buckets for them; to have them all build it again and name its --lengths"
    ]
    assert engine.best_tokens == 64
    rows = [row(length, seed=length) for length in (32, 31, 30, 29, 28, 27, 26, 25, 5, 4)]
    expected = [answers(engine, [one])[0] for one in rows]
    batcher = Batcher(engine, max_rows=8, max_tokens=1000, max_queued=100)
    found = await batcher.run(rows)
    batcher.close()
    np.testing.assert_allclose([one["embedding"] for one in found], expected, rtol=1e-6)


# What cannot be loaded


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"content": b"not a plan"}, ["does not load", ".plan", "magicTag"]),
        ({"content": b""}, ["does not load", ".plan", "magicTag"]),
        ({"content": plan_bytes(host_code=True)}, ["host code is not allowed"]),
        ({"content": plan_bytes(outputs={"logits": ["float32", 8]})}, ["logits float32", "embedding float32"]),
        ({"content": plan_bytes(outputs={"embedding": ["bfloat16", 8]})}, ["embedding bfloat16", "manifest says"]),
        (
            {"content": plan_bytes(inputs={"input_ids": "int64", "attention_mask": "int32"})},
            ["input_ids int64", "input_ids int32"],
        ),
        ({"content": plan_bytes(outputs={"embedding": ["float32", 9]})}, ["the shape (8, 9)", "not (8, 8)"]),
        ({"content": plan_bytes(profiles(lengths=(8, 16, 31)))}, ["does not take input_ids at", "length=32"]),
    ],
)
def test_a_plan_that_does_not_do_is_refused_and_everything_freed(
    small_bundle: Path, options: dict[str, Any], words: list[str]
):
    device = Device()
    with pytest.raises(EngineError) as error:
        engine_on_double(small_bundle, device=device, **options)
    for word in words:
        assert word in str(error.value)
    assert not device.memory
    assert not device.pinned


def test_a_profile_that_is_not_taken(small_bundle: Path):
    device = Device()
    trt = TensorRtDouble(device)
    trt.refuse_to_select = "out of luck"
    with pytest.raises(EngineError, match="TensorRT does not take optimization profile 8 of .*: out of luck"):
        engine_on_double(small_bundle, device=device, trt=trt)
    assert not device.memory


def test_a_version_compatible_plan_may_bring_code(small_bundle: Path):
    warm(small_bundle, content=plan_bytes(host_code=True), version_compatible=True).close()


# Memory that does not suffice


def test_the_largest_batch_is_left_out_where_the_memory_does_not_suffice(small_bundle: Path):
    device = Device(capacity=200_000)  # 8 x 32 tokens of 1,000 bytes are more, 4 x 32 less
    engine = warm(small_bundle, device=device)
    assert engine.buckets.batches == (1, 4)
    assert len(engine.notes) == 1
    assert "no room for batches of 8, at most 4 rows run at once: CUDA failed" in engine.notes[0]
    assert answers(engine, [row(32)] * 4).shape == (4, 8)
    engine.close()
    assert not device.memory


@pytest.mark.parametrize(
    ("version", "made"), [("10.13.0.35", profile_a_length()), ("8.6.1", profiles()), ("8.6.1", profile_a_length())]
)
def test_a_smaller_batch_takes_the_same_scratch_memory_where_profiles_do_not_part_them(
    small_bundle: Path, version: str, made: tuple[Profile, ...]
):
    """That of a profile's largest bucket, with TensorRT 8.6 of the plan's; so the whole plan has no room."""
    device = Device(capacity=200_000)  # as above
    trt = TensorRtDouble(device, version)
    with pytest.raises(OutOfMemory):
        warm(small_bundle, device=device, trt=trt, profiles=made, profile_sharing=len(made) < len(profiles()))
    assert not device.memory


@pytest.mark.parametrize(("capacity", "max_batch"), [(100_000, None), (1000, 1)])
def test_it_is_left_out_once_and_where_there_are_others(small_bundle: Path, capacity: int, max_batch: int | None):
    device = Device(capacity=capacity)
    with pytest.raises(OutOfMemory):
        warm(small_bundle, device=device, max_batch=max_batch)
    assert not device.memory


@pytest.mark.parametrize("fault", ["cuGraphInstantiateWithFlags", "cuGraphUpload"])
def test_memory_that_ends_during_the_captures(small_bundle: Path, fault: str):
    device = Device()
    engine = engine_on_double(small_bundle, device=device)
    device.faults[fault] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    engine.warm_up()
    assert engine.buckets.batches == (1, 4)
    assert answers_at_every_bucket(engine)
    engine.close()
    assert not device.memory


def test_the_room_of_the_largest_batch_is_given_back(tmp_path: Path):
    device, smaller = Device(), Device()
    engine = engine_on_double(write_small_bundle(tmp_path / "a"), device=device)
    device.faults["cuGraphUpload"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    engine.warm_up()
    never_larger = warm(write_small_bundle(tmp_path / "b"), device=smaller, max_batch=4)
    assert engine.buckets.batches == never_larger.buckets.batches
    if isinstance(device.memory, dict):  # of the double, where each engine has a device of its own
        assert bytes_on(device) == bytes_on(smaller)
        assert sum(map(len, device.pinned)) == sum(map(len, smaller.pinned))
        assert sum(not graph.destroyed for graph in device.graphs) == len(smaller.graphs)


@pytest.mark.parametrize(
    "said",
    [
        "1: [defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime (out of memory)",
        "2: [executionContext.cpp::ExecutionContext::470] Error Code 2: OutOfMemory (no further information)",
        "[defaultAllocator.cpp::allocate::31] Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)",
    ],
)
def test_memory_that_ends_within_tensorrt(small_bundle: Path, said: str):
    device = Device()
    trt = TensorRtDouble(device)
    engine = engine_on_double(small_bundle, device=device, trt=trt)
    trt.refuse_to_run = said
    with pytest.raises(OutOfMemory, match=re.escape(said)):
        engine.warm_up()
    assert engine.buckets.batches == (1, 4)  # tried without the largest batch as well


@pytest.fixture
def _no_collection() -> Iterator[None]:
    """As during a boot, at whose end all that is there is frozen: what only leads to itself then stays for good."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("version", ["8.6.1", "10.13.0.35"])
def test_memory_of_execution_contexts_is_given_back_before_the_second_try(small_bundle: Path, version: str):
    device = Device()
    trt = TensorRtDouble(device, version)
    trt.most_contexts = 2 * len(LENGTHS)  # those of 8 rows and half of the others; without 8 rows all of them
    engine = warm(small_bundle, device=device, trt=trt)
    assert engine.buckets.batches == (1, 4)
    assert "TensorRT makes no execution context" in engine.notes[0]
    assert answers_at_every_bucket(engine)


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("refused_before", [False, True])
def test_memory_that_ends_at_a_capture_leaves_no_execution_context_with_its_profile(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, refused_before: bool
):
    """Those of 8.6 end the process when a profile is selected that another one still has."""
    device = Device()
    engine = engine_on_double(small_bundle, device=device, trt=TensorRtDouble(device, "8.6.1"))
    faults = iter([CUresult.CUDA_ERROR_INVALID_VALUE, None, None] if refused_before else [None] * 3)
    faults = chain(faults, [CUresult.CUDA_ERROR_OUT_OF_MEMORY])  # at 4 rows, which are tried again
    capture = TensorRtEngine._capture

    def failing(engine: TensorRtEngine, run: Any) -> list[str]:
        if fault := next(faults, None):
            device.faults["cuGraphInstantiateWithFlags"] = fault
        return capture(engine, run)

    monkeypatch.setattr(TensorRtEngine, "_capture", failing)
    engine.warm_up()
    assert engine.buckets.batches == (1, 4)
    assert answers_at_every_bucket(engine)


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("outputs", [{"logits": ["float32", 8]}, {"embedding": ["float32", 9]}])
def test_nothing_of_tensorrt_outlives_a_plan_that_was_refused(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, outputs: dict[str, Any]
):
    """Its weights are on the GPU."""
    loaded: list[weakref.ref[Any]] = []
    deserialize = TensorRtEngine._deserialize

    def noting(engine: TensorRtEngine, plan: Any) -> tuple[Any, Any]:
        runtime, cuda_engine = deserialize(engine, plan)
        loaded.append(weakref.ref(cuda_engine))
        return runtime, cuda_engine

    monkeypatch.setattr(TensorRtEngine, "_deserialize", noting)
    with suppress(EngineError):
        engine_on_double(small_bundle, content=plan_bytes(outputs=outputs))
    assert [one() for one in loaded] == [None]


# Failures while running


def test_a_sticky_error_is_told_apart(small_bundle: Path):
    engine = warm(small_bundle)
    bad = Row({"input_ids": np.full(4, POISON, np.int32), "attention_mask": np.ones(4, np.int32)}, 4)
    with pytest.raises(EngineLost, match=r"CUDA failed while running Bucket\(batch=1, length=8\)"):
        run_rows(engine, [bad])
    with pytest.raises(EngineLost):
        run_rows(engine, [row(4)])
    engine.close()  # must not raise


def test_a_capture_that_breaks_the_context_is_the_end(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """The last one as well, which nothing follows that would find it out."""
    device = Device()
    engine = engine_on_double(small_bundle, device=device)
    capture = TensorRtEngine._capture

    def breaking(engine: TensorRtEngine, run: Any) -> list[str]:
        if run.bucket == engine.buckets[0]:
            device.faults["cuGraphUpload"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        return capture(engine, run)

    monkeypatch.setattr(TensorRtEngine, "_capture", breaking)
    with pytest.raises(EngineLost):
        engine.warm_up()


def test_a_refusal_of_tensorrts_is_not_the_end(small_bundle: Path):
    device = Device()
    trt = TensorRtDouble(device)
    trt.refuse_to_capture = True
    engine = warm(small_bundle, device=device, trt=trt)
    trt.refuse_to_run = "Error Code 2: OutOfMemory"
    with pytest.raises(OutOfMemory):
        run_rows(engine, [row(4)])
    trt.refuse_to_run = "something is off"
    with pytest.raises(EngineError, match="TensorRT does not run .*: something is off$") as error:
        run_rows(engine, [row(4)])
    assert type(error.value) is EngineError  # what was said before is told once
    trt.refuse_to_run = ""
    assert answers(engine, [row(4)]).shape == (1, 8)


def test_an_error_that_passes_fails_one_run(small_bundle: Path):
    device = Device()
    engine = warm(small_bundle, device=device)
    expected = answers(engine, [row(4)])
    device.faults["cuGraphLaunch"] = CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(EngineError, match="cuGraphLaunch failed: CUDA_ERROR_INVALID_VALUE"):
        run_rows(engine, [row(4)])
    assert np.array_equal(answers(engine, [row(4)]), expected)


def test_closed_twice(small_bundle: Path):
    engine = warm(small_bundle)
    engine.close()
    engine.close()
    with pytest.raises(AttributeError):  # not views of memory that is no longer there
        engine.feeds(Bucket(1, 8))


def test_it_is_taken_apart_when_nothing_runs_and_captures_first(small_bundle: Path):
    """What runs reads the memory, and a capture the execution context, that would be gone."""
    device = Device()
    engine = warm(small_bundle, device=device)
    captures_left: list[int] = []
    for run in engine._runs.values():
        weakref.finalize(
            run.context.handle, lambda: captures_left.append(sum(not graph.destroyed for graph in device.graphs))
        )
    del run
    engine.start(load(engine, [row(4)], 0), 0)
    device.calls.clear()
    engine.close()
    assert device.calls[0] == "cuStreamSynchronize"
    assert captures_left == [0] * len(engine.buckets)


def test_a_closed_engine_holds_no_weights(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever still has it: they are on the GPU, and what loads next needs the room."""
    loaded: list[weakref.ref[Any]] = []
    deserialize = TensorRtEngine._deserialize

    def noting(engine: TensorRtEngine, plan: Any) -> tuple[Any, Any]:
        runtime, cuda_engine = deserialize(engine, plan)
        loaded.extend((weakref.ref(runtime), weakref.ref(cuda_engine)))
        return runtime, cuda_engine

    monkeypatch.setattr(TensorRtEngine, "_deserialize", noting)
    engine = warm(small_bundle)
    engine.close()
    assert [one() for one in loaded] == [None, None]


def test_nothing_of_cuda_outlives_the_close(small_bundle: Path):
    """pycuda cannot free what is dropped later in another thread than the one that loaded the engine."""
    device = Device(capacity=150_000)  # has to make room once
    engine = warm(small_bundle, device=device)
    engine.close()
    del engine
    assert device.leaked == []


def test_a_plan_that_is_gone_is_one_sentence(small_bundle: Path):
    """Verified, and then the volume is."""
    device = Device()
    add_plan(small_bundle, plan_bytes())
    bundle = open_bundle(small_bundle)
    (plan,) = plans_of(bundle)
    plan.path.unlink()
    said = re.escape(f"{plan.path} cannot be read (No such file or directory)")
    with installed(device, tensorrt=TensorRtDouble(device)), pytest.raises(EngineError, match=f"^{said}$"):
        TensorRtEngine(bundle, "model", plan)


@pytest.mark.parametrize("version", ["8.6.1", "10.13.0.35"])
def test_a_plan_with_fewer_profiles_than_its_sidecar_says_is_one_sentence(small_bundle: Path, version: str):
    """Found out before one is selected: there the bindings of 8.6 crash."""
    device = Device()
    trt = TensorRtDouble(device, version)
    with pytest.raises(EngineError, match=r"\.plan has 1 optimization profiles; its sidecar says 9$"):
        engine_on_double(small_bundle, device=device, trt=trt, content=plan_bytes(profiles()[:1]))


def test_what_a_run_costs_is_what_was_measured(small_bundle: Path):
    assert engine_on_double(small_bundle).overhead_tokens == 512
    latencies = tuple(100 + bucket.tokens for bucket in Ladder(BATCHES, LENGTHS))
    engine = engine_on_double(small_bundle, latencies_us=latencies)
    assert (engine.overhead_tokens, engine.best_tokens) == (100, BATCHES[-1] * LENGTHS[-1])


def test_lengths_that_end_before_the_models_are_noted(small_bundle: Path):
    made = profiles(lengths=(8, 16))
    engine = engine_on_double(small_bundle, profiles=made, lengths=(8, 16))
    assert engine.notes == [
        "rows of more than 16 tokens fail, though the model takes 32: sm_89-trt10.13.0-fp16.plan was built with "
        "--lengths that end there"
    ]


def test_a_tensorrt_that_does_not_load(small_bundle: Path):
    device = Device()
    trt: Any = None  # what Python makes an ImportError of
    add_plan(small_bundle, plan_bytes())
    bundle = open_bundle(small_bundle)
    (plan,) = plans_of(bundle)
    said = r"^tensorrt does not load: .*; install requirements/all\.txt$"
    with installed(device, tensorrt=trt), pytest.raises(EngineError, match=said):
        TensorRtEngine(bundle, "model", plan)


def test_a_driver_that_tensorrt_does_not_start_on(small_bundle: Path):
    device = Device()
    trt = TensorRtDouble(device)
    trt.refuse_to_start = "CUDA initialization failure with error: 35"
    with pytest.raises(EngineError, match=r"TensorRT 10.13.0.35 does not start on this driver: CUDA init.*error: 35"):
        engine_on_double(small_bundle, device=device, trt=trt)
    assert not device.memory
