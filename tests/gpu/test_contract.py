"""The whole contract of an engine and its batcher, on TensorRT and on ONNX Runtime's CUDA provider where it is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.backends.onnxruntime_cuda import OnnxRuntimeCudaEngine
from engine.bundle import open_bundle
from engine.plans.sidecar import plans_of
from engine.probe import onnxruntime_providers
from tests.contract import test_engine as contract
from tests.gpu.conftest import BUILD_TIMEOUT_S, opened

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(BUILD_TIMEOUT_S)]


@pytest.fixture(params=["tensorrt", "onnxruntime-cuda"])
def engine(request: pytest.FixtureRequest, toy: Path) -> Iterator[Any]:
    if request.param == "tensorrt":
        (plan,) = plans_of(open_bundle(toy))
        with opened(toy, plan) as made:
            yield made
        return
    if "CUDAExecutionProvider" not in onnxruntime_providers():
        pytest.skip("the installed ONNX Runtime is the CPU build")
    session = OnnxRuntimeCudaEngine(open_bundle(toy))
    session.warm_up()
    yield session
    session.close()


# Every test there that is about `engine` and nothing else runs here as well, with the fixture above.
_SHARED = {
    name: test
    for name, test in vars(contract).items()
    if name.startswith("test_") and list(inspect.signature(test).parameters) == ["engine"]
}
globals().update(_SHARED)


def test_the_contract_is_here():
    assert {"test_shapes_and_buckets", "test_a_rows_answer_does_not_depend_on_its_company"} <= set(_SHARED)
    assert len(_SHARED) >= 6
