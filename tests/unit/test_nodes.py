"""What is changed in graphs before ONNX Runtime sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from export.nodes import complete_norms, keep_padding


def test_zeros_that_are_padded_in_front_of_a_pool_stay_zeros():
    pads = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads")
    nodes = [
        helper.make_node("Pad", ["x", "pads", "zero"], ["padded"], mode="constant"),
        helper.make_node("MaxPool", ["padded"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 0, 0]),
    ]
    sides = [("x", ["batch", 1, 4, 4]), ("y", None)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sides)
    graph = helper.make_graph(nodes, "g", [x], [y], [pads, numpy_helper.from_array(np.float32(0), "zero")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert pooled(model) == [-1, -1, -1, -1], "ONNX Runtime no longer merges them; keep_padding can go"
    keep_padding(model.graph)
    assert pooled(model) == [0, 0, 0, -1]


def pooled(model: Any) -> Any:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": -np.ones((1, 1, 4, 4), np.float32)})[0].ravel().tolist()


def test_a_normalisation_without_bias_gets_one_of_zeros():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y"))
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["z"]),
        helper.make_node("LayerNormalization", ["z", "scale"], ["y"]),
    ]
    scale = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "scale")
    graph = helper.make_graph(nodes, "g", [x], [y], [scale])
    complete_norms(graph)
    assert [list(node.input) for node in graph.node] == [["x", "scale", "scale/bias"], ["z", "scale", "scale/bias"]]
    (_, bias) = graph.initializer
    assert numpy_helper.to_array(bias).tolist() == [0, 0, 0]
