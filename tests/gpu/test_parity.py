"""Plans answer what ONNX Runtime answers on the CPU, at every bucket, in every precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.backends.onnxruntime_cuda import OnnxRuntimeCudaEngine
from engine.bundle import open_bundle
from engine.plans.sidecar import PlanFile
from engine.probe import Gpu, onnxruntime_providers, tensorrt_version
from export.plans.gate import gate
from export.precision.candidates import in_precision
from tests.gpu.conftest import BATCHES, BUILD_TIMEOUT_S, LENGTHS, opened

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(BUILD_TIMEOUT_S)]

LIMITS = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}
_AMPERE = (8, 0)


def _skip_unless_it_can(precision: str, this_gpu: Gpu) -> None:
    if precision in ("tf32", "bf16") and this_gpu.compute_capability < _AMPERE:
        pytest.skip(f"{this_gpu} has no {precision}")
    if precision == "bf16" and (tensorrt_version() or "").startswith("8."):
        pytest.skip("TensorRT 8 has no bf16")


@pytest.mark.parametrize("precision", LIMITS)
def test_every_bucket_answers_like_the_cpu(
    encoder: Path, plan_in: Callable[[str], PlanFile], this_gpu: Gpu, precision: str
):
    _skip_unless_it_can(precision, this_gpu)
    plan = plan_in(precision)
    with opened(encoder, plan) as engine:
        assert list(engine.buckets) == list(plan.plan.ladder)
        figures = gate(open_bundle(encoder), "model", engine, engine.buckets, precision)
    assert figures["buckets"] == len(BATCHES) * len(LENGTHS)
    assert figures["min_cosine"] >= 0.999
    assert figures["max_relative_difference"] <= LIMITS[precision]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_figures_are_in_the_bundle(encoder: Path, plan_in: Callable[[str], PlanFile], precision: str):
    plan = plan_in(precision)
    noted = json.loads((encoder / "parity.json").read_text())["plans"]
    assert noted[f"graphs/model/plans/{plan.name}"]["min_cosine"] >= 0.999


def test_half_precision_is_really_in_use(encoder: Path, plan_in: Callable[[str], PlanFile]):
    """A plan that ran in fp32 would pass every gate of fp16."""
    found = {}
    for precision in ("fp32", "fp16"):
        with opened(encoder, plan_in(precision)) as engine:
            figures = gate(open_bundle(encoder), "model", engine, engine.buckets, precision)
            found[precision] = figures["max_relative_difference"]
    assert found["fp16"] > 3 * found["fp32"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime_on_cuda_answers_like_the_cpu(encoder: Path, plan_in: Callable[[str], PlanFile], precision: str):
    if "CUDAExecutionProvider" not in onnxruntime_providers():
        pytest.skip("the installed ONNX Runtime is the CPU build")
    ladder = plan_in(precision).plan.ladder  # its graph in fp16 is in the bundle then
    bundle = open_bundle(encoder)
    engine = OnnxRuntimeCudaEngine(in_precision(bundle, "model", precision), max_batch=BATCHES[-1])
    try:
        gate(bundle, "model", engine, ladder, precision)
    finally:
        engine.close()
