"""How a TensorRT engine is run when trtexec's switches say so, on doubles of CUDA and TensorRT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.engine_times import Times
from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.backends.tensorrt import TensorRtEngine
from engine.bucket import Bucket
from engine.bundle import open_bundle
from engine.errors import EngineError
from tests.cuda_double import Device
from tests.tensorrt_double import TensorRtDouble, engine_on_double

RUNS = 5
LIMITS = {"warm_up_ms": 0.0, "duration_s": 0.0, "iterations": RUNS}
BUCKET = Bucket(4, 16)
COPIES = ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync")


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def engine(small_bundle: Path, device: Device) -> Iterator[TensorRtEngine]:
    engine = engine_on_double(small_bundle, device=device)
    engine.warm_up()
    device.calls.clear()
    yield engine
    engine.close()


def times(path: Path, engine: TensorRtEngine, **switches: bool) -> Times:
    return Times(open_bundle(path), engine, **switches, **LIMITS)  # type: ignore[arg-type]


def test_a_graph_is_replayed_by_default(small_bundle: Path, engine: TensorRtEngine, device: Device):
    assert len(times(small_bundle, engine).with_copies(BUCKET).ms) == RUNS
    assert device.calls.count("cuGraphLaunch") == RUNS + 1
    assert not set(COPIES) & set(device.calls)


def test_without_a_graph_copies_are_queued_one_by_one(small_bundle: Path, engine: TensorRtEngine, device: Device):
    assert len(times(small_bundle, engine, cuda_graph=False).with_copies(BUCKET).ms) == RUNS
    assert "cuGraphLaunch" not in device.calls
    assert [device.calls.count(name) for name in COPIES] == [RUNS + 1] * 2


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_the_run_alone_copies_nothing(small_bundle: Path, engine: TensorRtEngine, device: Device, cuda_graph: bool):
    measured = times(small_bundle, engine, cuda_graph=cuda_graph)
    before = list(device.calls)
    found = measured.alone(BUCKET)
    assert found is not None and len(found.ms) == RUNS
    made = device.calls[len(before) :]
    # Its inputs are brought once, by a run that counts as none.
    assert sum(made.count(name) for name in COPIES) == (0 if cuda_graph else 2)
    assert made.count("cuGraphLaunch") == (RUNS + 2 if cuda_graph else 0)
    assert made.count("cuEventSynchronize") >= RUNS


def test_an_engine_on_the_cpu_has_no_run_without_copies(small_bundle: Path):
    bundle = open_bundle(small_bundle)
    engine = OnnxRuntimeEngine(bundle)
    assert Times(bundle, engine, **LIMITS).alone(BUCKET) is None  # type: ignore[arg-type]
    engine.close()


def test_a_refusal_is_no_fast_run(small_bundle: Path, device: Device):
    trt = TensorRtDouble(device)
    engine = engine_on_double(small_bundle, device=device, trt=trt)
    engine.warm_up()
    trt.refuse_to_run = "something is off"
    with pytest.raises(EngineError, match="TensorRT does not run Bucket"):
        times(small_bundle, engine).alone(BUCKET)
    engine.close()
