"""What a running engine may and may not do: captures that equal plain runs, and not one allocation in 10,000 runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.bucket import Bucket
from tests.gpu.conftest import BUILD_TIMEOUT_S

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(BUILD_TIMEOUT_S)]

RUNS = 10_000


def fill(engine: Any, bucket: Bucket, slot: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, bucket.length + 1, (bucket.batch, 1))
    for name, values in engine.feeds(bucket, slot).items():
        if name == "attention_mask":
            values[:] = np.arange(bucket.length) < lengths
        else:
            values[:] = rng.integers(0, 2 if name == "token_type_ids" else 40, values.shape)


def replayed(engine: Any, bucket: Bucket, slot: int) -> Any:
    engine.start(bucket, slot)
    return {name: values.copy() for name, values in engine.finish(slot).items()}


def enqueued(engine: Any, bucket: Bucket, slot: int) -> Any:
    """The same without the capture: copy in, enqueue, copy out."""
    run, cuda = engine._runs[bucket], engine._cuda
    with cuda.active("testing"):
        for values in engine._buffers.results(bucket, slot).values():
            values.fill(np.nan)
        engine._enqueue(run, slot)
        cuda.wait_all()
    return {name: values.copy() for name, values in engine._buffers.results(bucket, slot).items()}


def test_every_bucket_is_captured_for_every_slot(engine: Any):
    assert engine.notes == []
    assert {bucket: len(run.captures) for bucket, run in engine._runs.items()} == dict.fromkeys(engine.buckets, 2)


def test_a_replay_equals_a_plain_run_bit_for_bit(engine: Any):
    for seed, bucket in enumerate(engine.buckets):
        for slot in range(engine.slots):
            fill(engine, bucket, slot, seed)
            first, plain, again = (
                replayed(engine, bucket, slot),
                enqueued(engine, bucket, slot),
                replayed(engine, bucket, slot),
            )
            assert np.isfinite(first["embedding"]).all()
            for name, values in plain.items():
                assert values.tobytes() == first[name].tobytes() == again[name].tobytes(), bucket


def test_slots_do_not_disturb_each_other(engine: Any):
    """Two runs on their way at once, of different buckets, give what each gives alone."""
    buckets = list(engine.buckets)
    alone = {}
    for seed, bucket in enumerate(buckets):
        fill(engine, bucket, seed % 2, seed)
        alone[bucket] = replayed(engine, bucket, seed % 2)["embedding"]
    for seed, bucket in enumerate(buckets):  # each begins while the one before it runs
        slot = seed % 2
        fill(engine, bucket, slot, seed)
        engine.start(bucket, slot)
        if seed:
            before = buckets[seed - 1]
            assert np.array_equal(engine.finish(1 - slot)["embedding"], alone[before])
    assert np.array_equal(engine.finish((len(buckets) - 1) % 2)["embedding"], alone[buckets[-1]])


def test_ten_thousand_runs_allocate_nothing(engine: Any):
    """Counted where we allocate, and seen in the device's free memory, for what TensorRT and the driver might take."""
    rng = np.random.default_rng(0)
    buckets = list(engine.buckets)
    for slot in range(engine.slots):
        for bucket in buckets:
            # All buckets lie in the same memory: what is no token type there would be one here, off its table.
            for values in engine.feeds(bucket, slot).values():
                values[:] = 1
            replayed(engine, bucket, slot)
    before, counted = memory_left(engine), engine.allocations
    for number, index in enumerate(rng.integers(0, len(buckets), RUNS)):
        slot = number % engine.slots
        engine.start(buckets[index], slot)
        engine.finish(slot)
    assert engine.allocations == counted
    assert memory_left(engine) == before


def memory_left(engine: Any) -> int:
    with engine._cuda.active("testing"):
        free, _ = engine._cuda.memory_left()
    return int(free)


def test_closing_gives_the_memory_back(engine: Any, encoder: Any, plan_in: Any):
    """Engines that come and go leave the device as it was, but for what the first one made the driver load."""
    from tests.gpu.conftest import opened

    left = []
    for _ in range(3):
        with opened(encoder, plan_in("fp16")):
            pass
        left.append(memory_left(engine))
    assert left[2] == left[1]
