"""The gate of `python -m export`: what it compares on, and what does not pass it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import export.pooling
from export.tasks.feature_extraction import FeatureExtractionExport
from export.text import longest_text
from tests import models
from tests.exports import Export
from tests.models import edit_json


def test_the_gates_figures_are_in_the_bundle(bert_bundle: Path):
    figures = json.loads((bert_bundle / "parity.json").read_text())
    assert figures["limits"] == {"min_cosine": 0.99999, "max_relative_difference": 1e-3, "min_neighbours": 0.99}
    assert figures["longest_text_tokens"] == 32
    assert set(figures["graphs"]) == {"graphs/model/fp32.cpu.onnx", "graphs/model/fp32.onnx"}
    for graph in figures["graphs"].values():
        assert graph["min_cosine"] >= 0.999999
        assert graph["max_relative_difference"] <= 1e-5


def test_a_wrong_graph_does_not_pass_the_gate(run: Export, bert: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(export.pooling.POOLINGS, "mean", export.pooling._cls)
    code, _, said = run(bert)
    assert code == 1
    assert "answers differ from the reference" in said
    assert said.splitlines()[2].split() == ["text", "graph", "cosine", "difference"]
    assert "fp32.cpu.onnx, batch of 1" in said


def change_reference(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    real = FeatureExtractionExport.reference

    def changed(*arguments: Any) -> Any:
        found = real(*arguments)
        return found and {"embedding": change(found["embedding"])}

    monkeypatch.setattr(FeatureExtractionExport, "reference", changed)


def test_a_wrong_scale_does_not_pass_the_gate(run: Export, bert: Path, monkeypatch: pytest.MonkeyPatch):
    change_reference(monkeypatch, lambda vector: 1.01 * vector)
    code, _, said = run(bert)
    assert code == 1
    assert "1.0000000" in said  # the cosine alone would have passed


def test_the_gates_cosine_can_be_chosen(run: Export, bert: Path, monkeypatch: pytest.MonkeyPatch):
    def tilted(vector: Any) -> Any:
        tilt = np.resize([9e-4, -9e-4], vector.shape).astype(np.float32)  # a cosine of about 0.999987
        return vector + tilt * np.linalg.norm(vector)

    change_reference(monkeypatch, tilted)
    assert run(bert)[0] == 1
    # Meant for what a ladder comes to, it does not loosen what that is compared with.
    assert run(bert, "--parity-threshold", "0.9999", "--precision", "tensorrt=auto")[0] == 1
    assert run(bert, "--parity-threshold", "0.9999")[0] == 0


def test_a_stricter_limit_holds_where_a_ladder_may_end_at_fp32(run: Export, bert: Path):
    code, _, said = run(bert, "--parity-threshold", "max_relative_difference=1e-9", "--precision", "tensorrt=auto")
    assert code == 1
    assert "relative difference at most 1e-09" in said


@pytest.mark.parametrize(("length", "tokens"), [(128, range(129, 10_000)), (64, range(40, 65))])
def test_the_longest_text_exceeds_the_model_or_stops_at_the_gates_limit(bert: Path, length: int, tokens: range):
    from transformers import AutoTokenizer

    source: Any = SimpleNamespace(max_length=128, tokenizer=AutoTokenizer.from_pretrained(bert))
    text = longest_text(source, length)
    assert len(source.tokenizer.backend_tokenizer.encode(text)) in tokens


def test_a_tokenizer_that_makes_nothing_of_an_empty_text(run: Export, bert_bundle: Path, tmp_path: Path):
    model = models.tiny_qwen3(tmp_path / "model")
    edit_json(model / "tokenizer.json", post_processor=None)
    assert run(model)[0] == 0
    figures = json.loads((tmp_path / "out/bundle/parity.json").read_text())
    assert figures["texts"] == json.loads((bert_bundle / "parity.json").read_text())["texts"] - 1
