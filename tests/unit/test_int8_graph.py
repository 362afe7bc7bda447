"""What is fused and approximated around products of bytes says what it said before, nearly."""

import math

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from engine.tensors import Array
from export.int8_graph import finish


def test_gelu_becomes_the_one_with_tanh_with_its_bias():
    bias = np.linspace(-2, 2, 64).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("BiasGelu", ["values", "bias"], ["biased"], domain="com.microsoft"),
            helper.make_node("Gelu", ["values"], ["plain"], domain="com.microsoft"),
        ],
        "gelus",
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, (None, 64))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (None, 64)) for name in ("biased", "plain")],
        [numpy_helper.from_array(bias, "bias")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    finish(model, {})
    assert [node.op_type for node in model.graph.node] == ["FastGelu", "FastGelu"]
    values = np.random.default_rng(0).normal(0, 3, (50, 64)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    biased, plain = session.run(["biased", "plain"], {"values": values})
    np.testing.assert_allclose(biased, _gelu(values + bias), atol=5e-4)
    np.testing.assert_allclose(plain, _gelu(values), atol=5e-4)
    assert np.abs(plain - _gelu(values)).max() > 1e-4  # it is the approximation


def _gelu(values: Array) -> Array:
    erf: Array = np.vectorize(math.erf)(values / math.sqrt(2))
    return values * 0.5 * (1 + erf)
