"""What can be tried of the CUDA provider's engine without a GPU: everything on the CPU but its ladder and its words."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.backends.onnxruntime_cuda import OnnxRuntimeCudaEngine, coarse, is_sticky
from engine.bucket import Bucket
from engine.bundle import open_bundle
from engine.errors import EngineError, EngineLost
from engine.feed import run_rows
from engine.tensors import Row


@pytest.mark.parametrize(
    ("largest", "batches", "lengths"),
    [
        (Bucket(32, 256), (1, 2, 4, 8, 16, 32), (16, 32, 64, 128, 256)),
        (Bucket(5, 100), (1, 2, 4, 5), (16, 32, 64, 100)),
        (Bucket(1, 1), (1,), (1,)),
        (Bucket(3, 16), (1, 2, 3), (16,)),
    ],
)
def test_a_coarse_ladder_ends_at_the_largest(largest: Bucket, batches: tuple[int, ...], lengths: tuple[int, ...]):
    ladder = coarse(largest)
    assert (ladder.batches, ladder.lengths) == (batches, lengths)


def test_every_bucket_answers_as_the_cpus_engine_does(small_bundle: Path):
    bundle = open_bundle(small_bundle)
    reference, engine = OnnxRuntimeEngine(bundle), OnnxRuntimeCudaEngine(bundle, device="cpu")
    engine.warm_up()
    bound = dict(engine._bindings)
    assert list(bound) == list(reversed(engine.buckets))
    rng = np.random.default_rng(0)
    for bucket in engine.buckets:
        ids = rng.integers(1, 49, (bucket.batch, bucket.length)).astype(np.int32)
        rows = [Row({"input_ids": one, "attention_mask": np.ones_like(one)}, bucket.length) for one in ids]
        for found, expected in zip(run_rows(engine, rows), run_rows(reference, rows), strict=True):
            np.testing.assert_allclose(found["embedding"], expected["embedding"], rtol=1e-6)
    assert engine._bindings == bound  # nothing was bound after warm-up
    engine.close()


def test_fp32_on_cuda_is_fp32(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Left alone the provider multiplies in TF32 from sm_80 on."""
    asked: list[Any] = []

    class Session:
        def __init__(self, path: str, options: ort.SessionOptions, providers: list[Any]) -> None:
            asked.extend(providers)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(ort, "InferenceSession", Session)
    OnnxRuntimeEngine(open_bundle(small_bundle), provider="cuda")
    assert asked == [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


def test_a_sticky_error_is_told_apart(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    engine = OnnxRuntimeCudaEngine(open_bundle(small_bundle), device="cpu")
    engine.warm_up()

    class Broken:
        def run_with_iobinding(self, binding: object) -> None:
            raise RuntimeError(self.says)

        says = "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=x"

    engine._session = Broken()
    with pytest.raises(EngineLost, match="CUDA failure 700"):
        engine.run(Bucket(1, 16))
    Broken.says = "CUDA failure 2: out of memory ; GPU=0"
    with pytest.raises(EngineError) as error:
        engine.run(Bucket(1, 16))
    assert not isinstance(error.value, EngineLost)
    assert not is_sticky("no CUDA failure")
