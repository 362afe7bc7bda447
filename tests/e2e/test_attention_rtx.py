"""Attention is one kernel a layer: as TensorRT-RTX's builder tells, for it alone builds without a GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.bert_bundle import bert_bundle
from benchmarks.bert_graph import Shape
from export.__main__ import main

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")

SHAPE = Shape(2, 128, 4, 512, vocab_size=100, max_position_embeddings=64)  # heads of 32, as MiniLM has


def kernels(capsys: pytest.CaptureFixture[str], bundle: Path, *options: str) -> tuple[int, int]:
    """All kernels of the plan, and those of fused attention."""
    command = ["plan", str(bundle), "--builder", "tensorrt-rtx", "--compute-capability", "8.9", "--layers"]
    assert main([*command, "--batches", "1", "--lengths", "64", *options]) == 0
    found = re.search(r"(\d+) kernels, (\d+) of them fused attention", capsys.readouterr().out)
    assert found is not None
    return int(found[1]), int(found[2])


def test_attention_is_fused_in_half_precision_and_lean_attention_saves_kernels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bundle = bert_bundle("small", tmp_path / "bundle", SHAPE)
    layers = SHAPE.num_hidden_layers
    found = {form: kernels(capsys, bundle, "--form", form) for form in ("half", "sums", "exported")}
    assert {fused for _, fused in found.values()} == {layers}
    assert found["half"][0] <= found["exported"][0] - layers
    assert found["sums"][0] <= found["exported"][0] - layers
    assert kernels(capsys, bundle, "--precision", "fp32")[1] == 0
    assert kernels(capsys, bundle, "--form", "half", "--precision", "bf16")[1] == layers


def test_hints_are_for_builders_that_take_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bundle = bert_bundle("small", tmp_path / "bundle", SHAPE)
    command = ["plan", str(bundle), "--builder", "tensorrt-rtx", "--compute-capability", "8.9"]
    assert main([*command, "--form", "hints"]) == 2
    said = "error: --form hints is for TensorRT 8; later versions run the types of the graph as they are\n"
    assert capsys.readouterr().err == said
    assert main([*command, "--form", "half", "--precision", "fp32"]) == 2
    assert capsys.readouterr().err == "error: --form is for plans in fp16 and bf16, not in fp32\n"
