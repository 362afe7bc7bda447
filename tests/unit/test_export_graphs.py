"""Pooling as nodes, and two graphs on one file of weights, on graphs of a handful of nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.optimize import ALIGNMENT, WEIGHTS, add_graph, load_whole, optimize
from export.pooling import append_pooling
from export.tasks.feature_extraction import TASK
from export.tracing.lean_trace import INSIDE_BELOW

DIMENSION = 3


def pooling_model(mode: str) -> Any:
    """A model that is nothing but pooling."""
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "length", DIMENSION])
    mask = helper.make_tensor_value_info("mask", TensorProto.INT32, ["batch", "length"])
    graph = helper.make_graph([], "pooling", [hidden, mask], [hidden])
    append_pooling(graph, mode, "hidden", "mask", DIMENSION)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("mode", TASK.poolings)
def test_pooling_sees_tokens_and_no_padding(mode: str):
    model = pooling_model(mode)
    lengths = [1, 3, 5]
    hidden = np.random.default_rng(0).normal(-5, 1, (3, 5, DIMENSION)).astype(np.float32)
    mask = (np.arange(5) < np.array(lengths)[:, None]).astype(np.int32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["embedding"], {"hidden": hidden, "mask": mask})
    for row, length, vector in zip(hidden, lengths, found, strict=True):
        tokens = row[:length]
        expected = {
            "mean": tokens.mean(0),
            "cls": tokens[0],
            "lasttoken": tokens[-1],
            "max": tokens.max(0),
            "weightedmean": sum(number * token for number, token in enumerate(tokens, 1)) / sum(range(length + 1)),
        }[mode]
        np.testing.assert_allclose(vector, expected, rtol=1e-6)


@pytest.mark.parametrize("mode", TASK.poolings)
def test_what_pooling_adds_is_named(mode: str):
    graph = pooling_model(mode).graph
    assert all(node.name.startswith("pooling/") for node in graph.node)
    assert all(tensor.name.startswith("pooling/") for tensor in graph.initializer)
    assert [tensor.name for tensor in graph.output] == ["embedding"]


def layers() -> Any:
    """Two multiplications by equal weights under different names, one by other weights, and a small tensor."""
    equal = np.arange(1024, dtype=np.float32).reshape(32, 32) / 1024
    weights = {"a": equal, "b": equal.copy(), "c": equal.T.copy(), "small": np.ones(32, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"]),
        helper.make_node("MatMul", ["xa", "b"], ["xb"]),
        helper.make_node("MatMul", ["xb", "c"], ["xc"]),
        helper.make_node("Add", ["xc", "small"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_two_graphs_share_every_tensor(tmp_path: Path):
    portable, fused, _ = optimize(layers(), tmp_path / "graph", tmp_path / "work")
    assert sorted(file.name for file in portable.parent.iterdir()) == ["fp32.cpu.onnx", "fp32.onnx", WEIGHTS]
    offsets = set()
    for path in (portable, fused):
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if not place:
                assert len(tensor.raw_data) < INSIDE_BELOW
                continue
            assert place["location"] == WEIGHTS
            assert int(place["offset"]) % ALIGNMENT == 0
            offsets.add(int(place["offset"]))
    assert len(offsets) == 2
    assert (portable.parent / WEIGHTS).stat().st_size == 2 * 4096


@pytest.mark.parametrize(("own", "shared"), [(2, True), (30, False)])
def test_a_further_graph_shares_tensors_unless_they_are_few(tmp_path: Path, own: int, shared: bool):
    """Of equal sizes; what few of them would save on the disk, a worker would read in whole."""
    *_, places = optimize(layers(), tmp_path / "graph", tmp_path / "work")
    model, rng = layers(), np.random.default_rng(1)
    for number in range(own):
        values = rng.normal(size=(32, 32)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, f"own{number}"))
    path = tmp_path / "graph" / "further.onnx"
    add_graph(model, path, places)
    stored = onnx.load(path, load_external_data=False).graph.initializer
    files = {entry.value for tensor in stored for entry in tensor.external_data if entry.key == "location"}
    assert files == {"further.bin", *([WEIGHTS] if shared else [])}
    for tensor, was in zip(load_whole(path).graph.initializer, model.graph.initializer, strict=True):
        assert tensor.name == was.name
    assert numpy_helper.to_array(load_whole(path).graph.initializer[-1]).tolist() == values.tolist()


def test_both_graphs_compute_what_the_model_did(tmp_path: Path):
    x = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    (expected,) = ort.InferenceSession(layers().SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )
    for path in optimize(layers(), tmp_path / "graph", tmp_path / "work")[:2]:
        (found,) = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_equal_models_give_equal_bytes(tmp_path: Path):
    for name in ("first", "second"):
        optimize(layers(), tmp_path / name, tmp_path / f"work-{name}")
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()
