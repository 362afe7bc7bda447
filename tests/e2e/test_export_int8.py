"""`python -m export --precision int8`: as much of a model in int8 as passes the gate."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path

import onnx
import pytest

from engine.bundle import open_bundle
from export.__main__ import main
from export.int8 import gate as int8_gate
from export.int8.dynamic import DynamicInt8
from export.int8.search import Step
from export.int8.smooth import products
from export.precision import ladder_cpu

ZERO_POINTS = {"DynamicQuantizeMatMul": 3, "MatMulInteger": 3, "MatMulIntegerToFloat": 5}
"""Which input of a product of bytes is that of its weights: ONNX Runtime 1.18.1 ends the process of a worker on a CPU
without VNNI where there is none."""


def test_int8_keeps_the_fewest_matrices_that_the_gate_allows_and_records_what_it_refused(bert: Path, tmp_path: Path):
    out = tmp_path / "bundle"
    assert main([str(bert), "--task", "feature-extraction", "--precision", "int8", "--out", str(out)]) == 0
    manifest = open_bundle(out).manifest
    assert manifest.precision == "int8"
    assert set(manifest.graphs["model"].fused) == {"fp32", "int8"}
    figures = json.loads((out / "parity.json").read_text())
    left, kept = figures["ladder"]["cpu"]
    assert (left["step"], left["passed"]) == ("int8, static: every weight matrix", False)
    assert (kept["step"], kept["passed"], kept.get("kept_in_fp32")) == ("int8: every weight matrix", True, None)
    assert figures["of_these_compared_with_fp32.onnx"] == 500
    assert set(figures["graphs"]) == {
        "graphs/model/fp32.onnx",
        "graphs/model/fp32.cpu.onnx",
        "graphs/model/int8.cpu.onnx",
    }
    open_bundle(out).verify()
    everything = float_products(out)
    assert tomllib.loads((out / "recipe.toml").read_text())["precision"] == {"cpu": "int8-dynamic"}

    # A limit that the first step does not keep: inputs are smoothed.
    limit = str(figures["graphs"]["graphs/model/int8.cpu.onnx"]["min_cosine"] + 2e-7)
    out = tmp_path / "smoothed"
    arguments = ["--task", "feature-extraction", "--precision", "int8", "--parity-threshold", limit]
    assert main([str(bert), *arguments, "--out", str(out)]) == 0
    figures = json.loads((out / "parity.json").read_text())
    assert figures["overridden"] == ["min_cosine"]
    static, first, *_, last = figures["ladder"]["cpu"]
    assert (static["step"], static["passed"]) == ("int8, static: every weight matrix", False)
    assert (first["step"], first["passed"]) == ("int8: every weight matrix", False)
    assert "smoothed" in last["step"]
    assert last["passed"]
    assert first["figures"]["min_cosine"] < float(limit) <= last["figures"]["min_cosine"]
    assert "cosine at least" in first["reason"]
    assert last["rows_per_s"] > 0
    assert float_products(out) == everything
    assert not list((out / "graphs/model").glob("observed*"))
    open_bundle(out).verify()

    # A matrix that is kept is computed in fp32.
    portable = out / "graphs/model/fp32.onnx"
    (name, *_) = (node.name for node in products(onnx.load(portable)))
    DynamicInt8(portable, out / "work", {}, []).write(Step(kept=(name,)))
    assert float_products(out) == everything + 1


@pytest.mark.slow
def test_a_limit_for_another_measure_keeps_the_reserve_and_the_mean(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "bundle"
    options = ["--task", "feature-extraction", "--precision", "int8", "--out", str(out)]
    difference = ["--parity-threshold", "max_relative_difference=0.09"]
    monkeypatch.setattr(int8_gate, "MEAN", 0.0)  # which nothing in int8 keeps
    monkeypatch.setattr(int8_gate, "_INPUTS_TRIED", 0)
    monkeypatch.setattr(int8_gate, "_SHORTLIST", 0)
    assert main([str(bert), *options, *difference]) == 1
    assert "a mean cosine of at least 1 is required" in capsys.readouterr().err
    assert main([str(bert), *options, *difference, "--parity-threshold", "min_cosine=0.98"]) == 0
    figures = json.loads((out / "parity.json").read_text())
    assert (figures["reserve"], figures["limits"]["min_neighbours"]) == (0.1, 0.7)


def test_the_recipe_in_the_bundle_names_the_form_that_speed_chose(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """So that it gives the same graphs again, whatever is faster then."""
    monkeypatch.setattr(ladder_cpu, "_STATIC_WORTH", 0.0)
    assert main([str(bert), "--precision", "int8", "--out", str(tmp_path / "a")]) == 0
    recipe = tomllib.loads((tmp_path / "a/recipe.toml").read_text())
    assert recipe["precision"] == {"cpu": "int8-static"}
    monkeypatch.setattr(ladder_cpu, "_STATIC_WORTH", float("inf"))
    argv = [str(bert), "--recipe", str(tmp_path / "a/recipe.toml"), "--out", str(tmp_path / "b")]
    assert main(argv) == 0
    one, other = (
        {file.name: file.read_bytes() for file in (tmp_path / name / "graphs/model").iterdir()} for name in "ab"
    )
    assert one == other
    manifest = open_bundle(tmp_path / "b").manifest
    assert (manifest.precision, manifest.precisions) == ("int8", {"cpu": "int8"})
    assert (tmp_path / "b/recipe.toml").read_bytes() == (tmp_path / "a/recipe.toml").read_bytes()


def test_a_form_that_is_named_is_the_only_one(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(int8_gate, "_INPUTS_TRIED", 0)
    monkeypatch.setattr(int8_gate, "_SHORTLIST", 0)
    argv = [str(bert), "--precision", "int8-static", "--parity-threshold", "1", "--out", str(tmp_path / "bundle")]
    assert main([*argv, "--allow-parity-failure"]) == 0
    fused = open_bundle(tmp_path / "bundle").manifest.graphs["model"].fused
    assert fused["int8"] == "graphs/model/int8-static.cpu.onnx"
    steps = json.loads((tmp_path / "bundle/parity.json").read_text())["ladder"]["cpu"]
    assert {step["step"].partition(",")[2].partition(",")[0].strip() for step in steps} == {"static"}
    assert not any(step["passed"] for step in steps)

    monkeypatch.setattr("export.int8.static_graphs.quantizable", lambda _: False)
    assert main([*argv[:-1], str(tmp_path / "none")]) == 2
    assert "the model has no weights that int8-static makes bytes of; take --precision" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def float_products(bundle: Path) -> int:
    """Products with a weight matrix that the int8 graph of `bundle` computes in fp32."""
    graph = onnx.load(bundle / "graphs/model/int8.cpu.onnx", load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    assert sum(operators[name] for name in ZERO_POINTS)
    for node in graph.node:
        if node.op_type in ZERO_POINTS:
            assert node.input[ZERO_POINTS[node.op_type]]
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    return sum(node.op_type in ("MatMul", "FusedMatMul", "Gemm") and node.input[1] in weights for node in graph.node)
