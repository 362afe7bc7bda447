"""Lowering a graph by one opset: the same answers, or the operator that stands against it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.tracing.opset import to_opset_17


def model(*nodes: Any, version: int = 18) -> Any:
    graph = helper.make_graph(
        list(nodes),
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array([-1]), "axes"),
            numpy_helper.from_array(np.array([1, 1, 1, 1]), "pads"),
            numpy_helper.from_array(np.array([2, 2], np.float32), "scales"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)


def run(found: Any, x: Any) -> Any:
    session = ort.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceL2", "ReduceSum"])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions_answer_the_same(op: str, keep: int):
    found = model(helper.make_node(op, ["x", "axes"], ["y"], keepdims=keep))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    before = run(found, x)
    assert to_opset_17(found) is None
    assert found.opset_import[0].version == 17
    np.testing.assert_array_equal(run(found, x), before)


def test_axes_from_a_constant_node_and_none_at_all():
    axes = helper.make_node("Constant", [], ["from_node"], value=numpy_helper.from_array(np.array([0])))
    found = model(
        axes, helper.make_node("ReduceMean", ["x", "from_node"], ["z"]), helper.make_node("ReduceMax", ["z"], ["y"])
    )
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    before = run(found, x)
    assert to_opset_17(found) is None
    np.testing.assert_array_equal(run(found, x), before)


def test_even_parts_and_resizing_answer_the_same():
    found = model(
        helper.make_node("Resize", ["x", "", "scales"], ["z"], mode="linear", antialias=0),
        helper.make_node("Split", ["z"], ["y", "rest"], num_outputs=2),
    )
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    before = run(found, x)
    assert to_opset_17(found) is None
    assert [attribute.name for node in found.graph.node for attribute in node.attribute] == ["mode"]
    np.testing.assert_array_equal(run(found, x), before)


def test_a_graph_of_17_that_says_what_only_18_can():
    found = model(helper.make_node("Split", ["x"], ["y", "rest"], num_outputs=2), version=17)
    assert to_opset_17(found) is None
    assert run(found, np.zeros((2, 3), np.float32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("node", "version", "against"),
    [
        (helper.make_node("Mish", ["x"], ["y"]), 18, "Mish"),
        (helper.make_node("Pad", ["x", "pads", "", "axes"], ["y"]), 18, "Pad"),
        (helper.make_node("Pad", ["x", "pads"], ["y"]), 18, None),
        (helper.make_node("Resize", ["x", "", "scales"], ["y"], antialias=1), 18, "Resize"),
        (helper.make_node("Resize", ["x", "", "scales"], ["y"], axes=[1]), 18, "Resize"),
        (helper.make_node("ScatterND", ["x", "places", "x"], ["y"], reduction="max"), 18, "ScatterND"),
        (helper.make_node("ScatterND", ["x", "places", "x"], ["y"], reduction="add"), 18, None),
        (helper.make_node("ReduceMean", ["x", "unknown"], ["y"]), 18, "ReduceMean"),
        (helper.make_node("Relu", ["x"], ["y"]), 19, "a later opset"),
        (helper.make_node("Relu", ["x"], ["y"]), 17, None),
    ],
)
def test_what_stands_against_it(node: Any, version: int, against: str | None):
    assert to_opset_17(model(node, version=version)) == against
