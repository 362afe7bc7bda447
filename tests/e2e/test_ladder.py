"""The precision ladder and its gate, from the command line to the worker."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from onnx import TensorProto

from engine.boot import open_engine
from engine.bundle import open_bundle
from engine.config import Settings
from engine.errors import BundleError
from engine.tensors import Row
from export.__main__ import main
from export.int8 import gate as int8_gate
from export.precision import ladder_cpu
from export.precision.half import LARGEST, lean_graph
from export.precision.overflow import magnitudes
from tests import models

TASK = ("--task", "feature-extraction")


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that fp32 computes well and fp16 has no numbers for: attention scores as exported, and what LayerNorm
    reads."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = models.tiny_bert(tmp_path_factory.mktemp("models") / "loud")
    weights = load_file(folder / "model.safetensors")
    for name in ("query", "key"):  # a component of every head that all tokens share: 264 * 264 is added to every score
        prefix = f"encoder.layer.0.attention.self.{name}"
        weights[f"{prefix}.weight"][7::8] = 0
        weights[f"{prefix}.bias"][7::8] = 264
    weights["encoder.layer.1.output.dense.weight"] *= 5e4
    assert weights["encoder.layer.1.output.dense.weight"].abs().max() < torch.finfo(torch.float16).max
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def exported(model: Path, out: Path, *options: str) -> dict[str, Any]:
    assert main([str(model), *TASK, "--out", str(out), *options]) == 0
    open_bundle(out).verify()
    assert {path.name for path in (out / "graphs/model").iterdir()} >= {"fp32.onnx", "fp32.cpu.onnx"}
    assert not [path for path in (out / "graphs/model").iterdir() if "observed" in path.name or "rounded" in path.name]
    figures: dict[str, Any] = json.loads((out / "parity.json").read_text())
    return figures


def half_tensors(path: Path) -> set[str]:
    graph = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False)).graph
    types = {one.name: one.type.tensor_type.elem_type for one in graph.value_info}
    return {name for name, kind in types.items() if kind == TensorProto.FLOAT16}


def test_fp16_that_overflows_is_caught_and_ends_in_a_mixed_graph_that_names_its_layers(loud: Path, tmp_path: Path):
    out = tmp_path / "bundle"
    figures = exported(loud, out, "--precision", "auto", "--targets", "cuda,tensorrt")
    first, *_, last = figures["ladder"]["tensorrt"]
    assert (first["step"], first["passed"]) == ("fp16", False)
    assert "differ from the reference" in first["reason"]
    assert last["passed"]
    kept = last["kept_in_fp32"]
    assert any(name.startswith("encoder/layer.1/output/dense/MatMul") for name in kept), kept
    assert "encoder/layer.1/output/LayerNorm/LayerNormalization" in kept
    assert not any(name.startswith("encoder/layer.0") for name in kept)  # attention.py takes away what all scores share
    assert "where fp16 ends at 65504" in last["because"]
    assert last["figures"]["min_cosine"] >= 0.999
    assert figures["precisions"] == {"cpu": "fp32", "cuda": "fp16", "tensorrt": "fp16"}
    manifest = open_bundle(out).manifest
    assert manifest.precisions == figures["precisions"]
    assert manifest.graphs["model"].onnx["fp16"] == "graphs/model/fp16.onnx"
    half = half_tensors(out / "graphs/model/fp16.onnx")
    assert half
    assert not any(f"/{name}_output_0" in half for name in kept)
    assert first["figures"]["min_cosine"] is None  # what is not a number is null


def test_what_attention_is_rewritten_for_overflows_as_exported(loud: Path, tmp_path: Path):
    exported(loud, tmp_path / "bundle")
    portable = tmp_path / "bundle/graphs/model/fp32.onnx"
    tokens = np.arange(5, 20, dtype=np.int32)
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    row = Row(feeds, len(tokens))
    scores = "/encoder/layer.0/attention/self/MatMul_output_0"
    assert magnitudes(portable, [row])[scores] > LARGEST
    with lean_graph(portable) as lean:
        assert magnitudes(lean, [row])[f"{scores}/lean"] < 1000


def test_an_ordinary_model_is_fp16_throughout(bert: Path, tmp_path: Path):
    figures = exported(bert, tmp_path / "bundle", "--precision", "auto", "--targets", "cuda")
    (step,) = figures["ladder"]["cuda"]
    assert (step["step"], step["passed"]) == ("fp16", True)
    assert any("LayerNorm" in name for name in half_tensors(tmp_path / "bundle/graphs/model/fp16.onnx"))
    assert set(step["figures"]) == {"min_cosine", "max_relative_difference", "min_neighbours"}


def test_bf16_is_a_step_of_its_own(bert: Path, tmp_path: Path):
    options = ("--precision", "tensorrt=bf16", "--parity-threshold", "max_relative_difference=0.2")
    figures = exported(bert, tmp_path / "bundle", *options)
    assert figures["precisions"] == {"cpu": "fp32", "tensorrt": "bf16"}
    assert "bf16" in open_bundle(tmp_path / "bundle").manifest.graphs["model"].onnx
    assert 0 < figures["ladder"]["tensorrt"][-1]["figures"]["max_relative_difference"] <= 0.2


def test_int8_for_tensorrt_has_its_scales_in_the_graph_and_only_when_asked_for_by_name(bert: Path, tmp_path: Path):
    out = tmp_path / "bundle"
    figures = exported(bert, out, "--precision", "cpu=int8,tensorrt=int8")
    assert figures["precisions"] == {"cpu": "int8", "tensorrt": "int8"}
    last = figures["ladder"]["tensorrt"][-1]
    assert last["passed"]
    assert set(last["calibration"]) == {"entropy", "percentile"}
    assert last["figures"] in last["calibration"].values()
    assert max(one["min_cosine"] for one in last["calibration"].values()) == last["figures"]["min_cosine"] >= 0.98
    manifest = open_bundle(out).manifest
    assert manifest.graphs["model"].onnx["int8"] == "graphs/model/int8.onnx"
    assert manifest.graphs["model"].fused["int8"] == "graphs/model/int8.cpu.onnx"
    graph = onnx.load(out / "graphs/model/int8.onnx").graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:  # as TensorRT demands: https://docs.nvidia.com/deeplearning/tensorrt, explicit quantization
        zero = weights[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    makers = {name: node for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type == "MatMul" and "weight" in node.input[1]]
    assert products
    for node in products:
        quantized = makers[makers[node.input[1]].input[0]]
        assert weights[quantized.input[0]].dtype == np.float32
        assert weights[quantized.input[1]].shape == (weights[quantized.input[0]].shape[1],)  # a scale a column
        assert weights[makers[node.input[0]].input[1]].shape == ()
    auto = exported(bert, tmp_path / "auto", "--precision", "tensorrt=auto")
    assert not any(step["step"].startswith("int8") for step in auto["ladder"]["tensorrt"])


@pytest.mark.slow
def test_int8_for_tensorrt_that_does_not_pass_becomes_fp16_and_says_what_was_tried(bert: Path, tmp_path: Path):
    out = tmp_path / "bundle"
    figures = exported(bert, out, "--precision", "tensorrt=int8", "--parity-threshold", "min_cosine=0.99999")
    assert figures["precisions"]["tensorrt"] == "fp16"
    *left, last = figures["ladder"]["tensorrt"]
    assert (last["step"], last["passed"]) == ("fp16", True)
    assert "kept_in_fp32" in left[-1]
    for step in left:
        assert not step["passed"]
        assert "cosine at least 0.99999" in step["reason"]
        assert set(step["calibration"]) == {"entropy", "percentile"}
    assert set(open_bundle(out).manifest.graphs["model"].onnx) == {"fp32", "fp16"}
    assert not list((out / "graphs/model").glob("int8*"))


def test_what_fails_is_written_only_when_allowed_and_served_only_when_told(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(int8_gate, "_INPUTS_TRIED", 0)
    monkeypatch.setattr(int8_gate, "_SHORTLIST", 0)
    impossible = ("--parity-threshold", "min_cosine=1", "--precision", "int8")
    out = tmp_path / "bundle"
    assert main([str(bert), *TASK, "--out", str(out), *impossible]) == 1
    assert list(tmp_path.iterdir()) == []
    figures = exported(bert, out, *impossible, "--allow-parity-failure")
    assert figures["overridden"] == ["min_cosine"]
    (said,) = figures["failed"]
    assert said.startswith("cpu: ")
    assert "cosine at least 1" in said
    assert "steps were left" in capsys.readouterr().out
    bundle = open_bundle(out)
    assert bundle.manifest.parity_failed == figures["failed"][0]
    with pytest.raises(BundleError) as refused:
        open_engine(bundle, Settings(bundle=out))
    said = str(refused.value)
    assert "failed its parity gate" in said
    assert said.endswith("export the model again, or set ALLOW_PARITY_FAILURE=1 to serve it all the same")
    assert "\n" not in said
    engine, _ = open_engine(bundle, Settings.from_environ({"BUNDLE": str(out), "ALLOW_PARITY_FAILURE": "1"}))
    engine.warm_up()
    engine.close()


@pytest.mark.parametrize(("precision", "graph"), [("int8-dynamic", "int8.cpu.onnx"), ("tensorrt=int8", "int8.onnx")])
def test_the_figures_of_what_fails_are_those_of_the_graph_that_is_written(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, graph: str
):
    """On all rows, though the search stops early at each step; the last step has another graph."""
    monkeypatch.setattr(ladder_cpu, "_STATIC_WORTH", 0.0)  # what is not named is not taken for its speed either
    monkeypatch.setattr(int8_gate, "_INPUTS_TRIED", 0)
    monkeypatch.setattr(int8_gate, "_SHORTLIST", 0)
    file, found = f"graphs/model/{graph}", []
    for name, limit in (("passes", "0.9"), ("fails", "1")):
        options = ("--precision", precision, "--parity-threshold", f"min_cosine={limit}", "--allow-parity-failure")
        figures = exported(bert, tmp_path / name, *options)
        target = "tensorrt" if precision.startswith("tensorrt") else "cpu"
        assert [one.partition(": ")[0] for one in figures.get("failed", ())] == [target] * (name == "fails")
        found.append((figures["graphs"][file], (tmp_path / name / file).read_bytes()))
    assert found[0] == found[1]


def test_parity_data_is_compared_row_by_row(bert: Path, tmp_path: Path):
    data = tmp_path / "mine.jsonl"
    data.write_text('{"text": "my own text"}\n\n{"texts": ["two", "rows"]}\n', encoding="utf-8")
    plain = exported(bert, tmp_path / "plain")
    figures = exported(bert, tmp_path / "bundle", "--parity-data", str(data))
    assert figures["texts"] == plain["texts"] + 3


def test_own_rows_without_a_token_have_nothing_to_look_at(bert: Path, tmp_path: Path):
    """PyTorch takes none, and in the tensors of such a row there is neither a largest value nor a range."""
    model = models.without_processor(Path(shutil.copytree(bert, tmp_path / "model")))
    data = tmp_path / "mine.jsonl"
    data.write_text('{"text": ""}\n{"texts": ["", "a cat"]}\n', encoding="utf-8")
    options = ("--precision", "cpu=int8-dynamic,tensorrt=fp16", "--parity-data", str(data))
    figures = exported(model, tmp_path / "bundle", *options)
    assert "graphs/model/int8.cpu.onnx" in figures["graphs"]


def test_equal_recipes_give_equal_graphs(bert: Path, tmp_path: Path):
    found = []
    for name in ("a", "b"):
        exported(bert, tmp_path / name, "--precision", "cpu=int8,cuda=auto")
        folder = tmp_path / name / "graphs/model"
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert [name for name in found[0] if found[0][name] != found[1].get(name)] == []
