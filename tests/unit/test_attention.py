"""Attention with fewer biases and smaller scores: the same answers, and nothing touched that is not quite attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.bert_graph import Shape, bert_graph, weights_of
from engine.tensors import Array
from export.optimize import add_graph
from export.precision.half import half, lean_graph

SHAPE = Shape(2, 64, 4, 64, vocab_size=50, max_position_embeddings=24)
HEADS, SIZE = 2, 4
WIDTH = HEADS * SIZE


def answers(path: Path, feeds: Mapping[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    found: list[Array] = ort.InferenceSession(str(path), options).run(None, dict(feeds))
    return found


def nodes_of(path: Path) -> list[Any]:
    return list(onnx.load(path, load_external_data=False).graph.node)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """With biases as large as what they are added to."""
    rng = np.random.default_rng(1)
    weights = {
        name: rng.standard_normal(value.shape, np.float32) * (1.0 if name.endswith("bias") else 0.1)
        for name, value in weights_of(SHAPE).items()
    }
    path = tmp_path / "fp32.onnx"
    add_graph(bert_graph(SHAPE, weights), path, {})
    return path


def test_bert_answers_as_before_with_two_biases_less_a_layer_and_no_scale_on_scores(bert: Path):
    rng = np.random.default_rng(0)
    mask = np.ones((3, 9), np.int32)
    mask[0, 4:] = 0
    feeds = {
        "input_ids": rng.integers(0, 50, (3, 9)).astype(np.int32),
        "attention_mask": mask,
        "token_type_ids": np.zeros((3, 9), np.int32),
    }
    before = nodes_of(bert)
    with lean_graph(bert) as path:
        np.testing.assert_allclose(answers(path, feeds)[0], answers(bert, feeds)[0], rtol=1e-4, atol=1e-5)
        after = nodes_of(path)
        onnx.checker.check_model(path, full_check=True)
    assert not path.exists()
    makers = {name: node for node in after for name in node.output}
    for softmax in (node for node in after if node.op_type == "Softmax"):
        masked = makers[softmax.input[0]]
        scores = makers[masked.input[0]]
        assert (masked.op_type, scores.op_type) == ("Add", "MatMul")
        assert [makers[name].op_type for name in scores.input] == ["Mul", "Transpose"]
        assert makers[makers[makers[scores.input[1]].input[0]].input[0]].op_type == "MatMul"  # no bias between
    kinds = [[node.op_type for node in nodes] for nodes in (before, after)]
    assert [one.count("Add") for one in kinds] == [kinds[0].count("Add"), kinds[0].count("Add") - 2 * 2]
    assert kinds[1].count("Div") == kinds[0].count("Div") - 2


def test_half_precision_is_made_from_it_unless_asked_not_to(bert: Path):
    lean = {name for node in nodes_of(half(bert, "fp16", sums=True)) for name in node.output}
    plain = {name for node in nodes_of(half(bert, "fp16", sums=True, lean=False)) for name in node.output}
    assert any(name.endswith("/lean") for name in lean)
    assert not any("/lean" in name or "/query" in name for name in plain)


def attention(folder: Path, change: str = "") -> Path:
    """One attention over x (batch, length, WIDTH) with a mask (batch, 1, 1, length) that is added, y and more out."""
    rng = np.random.default_rng(0)
    constants = {
        "heads": np.array([0, 0, -1 if change == "rest" else HEADS, SIZE]),
        "joined": np.array([0, 0, -1 if change == "rest" else WIDTH]),
        "scale": np.float32(0.5),
        "low": np.float32(0.0 if change == "low number" else np.finfo(np.float32).min),
    }
    for part in "qkvo":
        constants[f"w{part}"] = rng.standard_normal((WIDTH, WIDTH), np.float32)
        constants[f"b{part}"] = rng.standard_normal(WIDTH, np.float32)
    nodes = []

    def add(kind: str, inputs: str, output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(kind, inputs.split(), [output], name=output, **attributes))

    for part, perm in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
        add("MatMul", f"x w{part}", f"{part}0")
        add("Add", f"b{part} {part}0", f"{part}1")
        add("Reshape", f"{part}1 heads", f"{part}2")
        if change == f"{part} scaled":
            add("Mul", f"{part}2 scale", f"{part}3")
        add("Transpose", f"{part}{3 if change == f'{part} scaled' else 2}", part, perm=perm)
    add("MatMul", "q k", "scores")
    add("Mul", "scale scores", "scaled")
    if change.startswith(("where", "low")):
        add("Where", "chosen scaled low", "masked")
    else:
        add("Add", "scaled mask", "masked")
    add("Softmax", "masked", "chances", axis=2 if change == "axis" else -1)
    add("MatMul", "chances v", "mixed")
    add("Transpose", "mixed", "turned", perm=(0, 2, 1, 3))
    add("Reshape", "turned joined", "side")
    add("MatMul", "side wo", "product")
    add("Add", "product bo", "y")
    outputs = ["y", *([change] if change in ("scores", "chances", "k1", "mixed", "turned") else [])]
    graph = helper.make_graph(
        nodes,
        "attention",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", WIDTH]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 1, 1, "length"]),
            helper.make_tensor_value_info("chosen", TensorProto.BOOL, ["batch", 1, 1, "length"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "fp32.onnx"
    add_graph(model, path, {})
    return path


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ("", {"k1", "v1", "scaled"}),
        ("where", {"k1", "v1", "scaled"}),
        ("rest", {"k1", "v1", "scaled"}),
        ("q scaled", {"k1", "v1", "scaled"}),
        ("k scaled", {"k1", "v1", "scaled"}),
        ("v scaled", {"k1", "scaled"}),  # the bias would be scaled as well
        ("low number", set()),  # a masked score is as good as others: what all others share counts
        ("axis", set()),
        ("scores", set()),  # read by the caller as they are
        ("k1", {"v1", "scaled"}),
        ("chances", {"k1", "scaled"}),
        ("mixed", {"k1", "scaled"}),
        ("turned", {"k1", "scaled"}),
    ],
)
def test_what_goes_and_what_stays(tmp_path: Path, change: str, gone: Sequence[str]):
    path = attention(tmp_path, change)
    rng = np.random.default_rng(2)
    chosen = np.ones((2, 1, 1, 5), np.bool_)
    chosen[0, ..., 3:] = False
    feeds = {
        "x": rng.standard_normal((2, 5, WIDTH), np.float32),
        "mask": np.where(chosen, 0, np.finfo(np.float32).min).astype(np.float32),
        "chosen": chosen,
    }
    with lean_graph(path) as lean:
        for found, expected in zip(answers(lean, feeds), answers(path, feeds), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        left = {name for node in nodes_of(lean) for name in node.output}
        assert {"k1", "v1", "scaled"} - left == set(gone)
        assert ("q1" not in left) == (bool(gone) and change != "q scaled")  # it is added behind the split into heads
