"""Exports of text tasks that end otherwise: without a task, without a head, in int8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo.text import task_model
from engine.bundle import open_bundle
from export.__main__ import main
from tests.same import assert_same


def test_without_a_task_the_models_files_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = task_model(tmp_path / "model", "token-classification", "bert")
    assert main([str(model), "--out", str(tmp_path / "bundle")]) == 0
    assert "s  token-classification, BertForTokenClassification, up to 128 tokens" in capsys.readouterr().out
    assert open_bundle(tmp_path / "bundle").manifest.task == "token-classification"


def test_a_checkpoint_without_the_head_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = task_model(tmp_path / "model", "feature-extraction", "bert")
    assert main([str(model), "--task", "text-classification", "--out", str(tmp_path / "bundle")]) == 2
    assert "model lacks 2 weights of BertForSequenceClassification, classifier.bias" in (
        said := capsys.readouterr().err
    )
    assert said.endswith("for one; it holds a BertModel, so --task may be another\n")


def test_a_classifier_with_several_outputs_is_no_reranker(zoo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = zoo("text-classification", "bert").folder
    assert main([str(folder), "--task", "text-ranking", "--out", str(tmp_path / "bundle")]) == 2
    assert "has 4 outputs, a reranker has one; try --task text-classification" in capsys.readouterr().err


def test_a_gate_that_fails_tells_the_tasks_own_figures(zoo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = zoo("question-answering", "bert").folder
    arguments = ["--task", "question-answering", "--out", str(tmp_path / "bundle"), "--parity-threshold", "1e-12"]
    assert main([str(folder), *arguments]) == 1
    said = capsys.readouterr().err
    assert "(required: difference at most 1e-12 and agreement at least 1)" in said
    header = said.splitlines()[2].split()
    assert header == ["text", "graph", "difference", "same", "best"]


def test_int8_is_judged_by_scores(zoo: Any, tmp_path: Path):
    folder = zoo("text-classification", "roberta").folder
    out = tmp_path / "bundle"
    assert main([str(folder), "--task", "text-classification", "--precision", "int8", "--out", str(out)]) == 0
    figures = json.loads((out / "parity.json").read_text())
    assert figures["limits"] == {"max_difference": 0.1, "min_agreement": 0.0, "min_same_best": 0.9}
    assert 1e-5 < figures["graphs"]["graphs/model/int8.cpu.onnx"]["max_difference"] < 0.1


def test_pads_and_special_tokens_come_from_the_tokenizer(zoo: Any):
    manifest = zoo("fill-mask", "roberta").served.bundle.manifest
    pads = {spec.name: spec.pad for spec in manifest.graphs["model"].inputs}
    assert pads == {"input_ids": 1, "attention_mask": 0, "mask_position": 0, "target_ids": 0}
    assert manifest.task_config["mask_token"] == "<mask>"
    assert_same(manifest.task_config["top"], 100)
