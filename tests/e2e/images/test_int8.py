"""int8 of models made of convolutions, which only calibrated scales reach."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks.zoo.images import task_model
from engine.bundle import open_bundle
from export.__main__ import main
from export.gate.measures import Measure
from export.int8.calibrate import METHODS
from export.int8.static_graphs import StaticInt8
from export.parity import Gate
from export.precision import ladder_cpu
from tests.served import Served


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_model(tmp_path_factory.mktemp("resnet") / "model", "image-classification", "resnet")


def exported(model: Path, out: Path, *options: str) -> dict[str, Any]:
    assert main([str(model), "--out", str(out), "--parity-threshold", "0.5", *options]) == 0
    open_bundle(out).verify()
    figures: dict[str, Any] = json.loads((out / "parity.json").read_text())
    return figures


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_calibrated_scales_are_taken_where_they_are_faster(
    resnet: Path, tmp_path: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ladder_cpu, "_STATIC_WORTH", 0.0)  # how fast such a small model is says nothing
    out = tmp_path / "bundle"
    figures = exported(resnet, out, "--precision", "int8")
    (step,) = figures["ladder"]["cpu"]
    assert step["passed"]
    assert step["step"] in (
        "int8, static, entropy: every weight matrix",
        "int8, static, percentile: every weight matrix",
    )
    assert set(step["calibration"]) == {"entropy", "percentile"}
    assert {"rows_per_s", "fp32_rows_per_s", "times_fp32"} <= set(step)
    assert open_bundle(out).manifest.graphs["model"].fused["int8"] == "graphs/model/int8-static.cpu.onnx"
    assert not (out / "graphs/model/int8.cpu.onnx").exists()
    found = kinds(out / "graphs/model/int8-static.cpu.onnx")
    assert found["QLinearConv"] == kinds(out / "graphs/model/fp32.onnx")["Conv"]
    assert not found["Conv"]
    served = Served(out)
    assert len(served.ask({"images": images})) == len(images)
    served.close()


@pytest.mark.parametrize("methods", [METHODS, METHODS[::-1]])
def test_the_nearer_calibration_is_kept_whatever_rounding_leaves_of_them(
    resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, methods: Sequence[str]
):
    badness: list[float] = []

    def check(self: Gate, *arguments: Any, **options: Any) -> dict[str, Any]:
        try:
            return real(self, *arguments, **options)
        finally:
            badness.append(self.badness)

    real = Gate.check
    monkeypatch.setattr(Gate, "check", check)
    monkeypatch.setattr(Measure, "rounded", lambda self, value: 0.5)  # one digit leaves as little of near ones
    monkeypatch.setattr(StaticInt8, "methods", methods)
    (step,) = exported(resnet, tmp_path / "bundle", "--precision", "int8-static")["ladder"]["cpu"]
    _, *tried = badness
    assert len(set(tried)) == 2
    assert step["step"] == f"int8, static, {methods[tried.index(min(tried))]}: every weight matrix"


def test_where_they_are_not_faster_their_search_is_left_with_both_speeds(
    resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ladder_cpu, "_STATIC_WORTH", float("inf"))
    out = tmp_path / "bundle"
    left, kept = exported(resnet, out, "--precision", "int8")["ladder"]["cpu"]
    assert (left["step"], left["passed"], kept["passed"]) == ("int8, static: every weight matrix", False, True)
    assert left["reason"].startswith(f"{left['rows_per_s']} rows/s beside ")
    assert left["reason"].endswith(" of dynamic int8: not searched further")
    assert not (out / "graphs/model/int8-static.cpu.onnx").exists()


def test_for_tensorrt_convolutions_have_their_scales_in_the_graph(resnet: Path, tmp_path: Path):
    out = tmp_path / "bundle"
    exported(resnet, out, "--precision", "tensorrt=int8")
    nodes = onnx.load(out / "graphs/model/int8.onnx", load_external_data=False).graph.node
    makers = {name: node for node in nodes for name in node.output}
    convs = [node for node in nodes if node.op_type == "Conv"]
    assert convs
    for conv in convs:
        assert [makers[name].op_type for name in conv.input[:2]] == ["DequantizeLinear"] * 2
