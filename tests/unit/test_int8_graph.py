"""Products of bytes, and what is fused and approximated around them, which says what it said before, nearly."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.bucket import Bucket
from engine.bundle import Bundle, Graph, open_bundle, write_manifest
from engine.tensors import Array, TensorSpec
from export.int8.graph import finish
from tests.bundles import write_small_bundle

DEPTH = 64
SUM = DEPTH * 255 * 127
"""Of products of the largest bytes, two of which are more than 16 bits hold."""
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]


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
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=8)
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


@pytest.fixture
def bytes_bundle(tmp_path: Path) -> Bundle:
    """The largest sums, by a product that finds its scale, as in dynamic int8, and by a Conv, as in static int8.

    Both have the same zeros.
    """
    weights = np.full((DEPTH, DEPTH), 127, np.int8)
    one, scale = np.array(1, np.float32), np.array(SUM / 250, np.float32)
    constants = {
        "weights": weights,
        "kernel": weights.reshape(DEPTH, DEPTH, 1, 1),
        "scales": np.ones(DEPTH, np.float32),
        "zeros": np.zeros(DEPTH, np.int8),
        "one": one,
        "scale": scale,
        "zero": np.array(0, np.uint8),
        "pixel": np.array([0, DEPTH, 1, 1]),
        "row": np.array([0, DEPTH]),
    }
    # Without the zeros ONNX Runtime 1.18.1 ends the process on a CPU without VNNI.
    matmul = ["values", "weights", "scales", "zeros"]
    conv = ["bytes", "one", "zero", "kernel", "scales", "zeros", "scale", "zero"]
    nodes = [
        helper.make_node("DynamicQuantizeMatMul", matmul, ["embedding"], domain="com.microsoft"),
        helper.make_node("QuantizeLinear", ["values", "one", "zero"], ["flat"]),
        helper.make_node("Reshape", ["flat", "pixel"], ["bytes"]),
        helper.make_node("QLinearConv", conv, ["made"]),
        helper.make_node("DequantizeLinear", ["made", "one", "zero"], ["values of it"]),
        helper.make_node("Reshape", ["values of it", "row"], ["convolved"]),
    ]
    shape, names = ("batch", DEPTH), ("embedding", "convolved")
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "bytes",
            [helper.make_tensor_value_info("values", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=OPSETS,
        ir_version=8,
    )
    finish(model, {})
    files = {name: f"graphs/model/{name}.cpu.onnx" for name in ("fp32", "int8")}
    graph = Graph(
        (TensorSpec("values", "float32", shape),),
        tuple(TensorSpec(name, "float32", shape) for name in names),
        {"fp32": "graphs/model/fp32.onnx"},
        files,
    )
    folder = write_small_bundle(tmp_path / "bytes", graphs={"model": graph}, precision="int8")
    for file in files.values():
        onnx.save(model, folder / file)
    write_manifest(folder, open_bundle(folder).manifest)
    return open_bundle(folder)


def test_every_product_has_bytes_of_its_own(bytes_bundle: Bundle):
    graph = onnx.load(bytes_bundle.path / bytes_bundle.onnx_of("model", "cpu")[0]).graph
    bytes_ = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8}
    read = [name for node in graph.node for name in node.input if name in bytes_]
    assert sorted(read) == sorted(bytes_)
    assert not any(numpy_helper.to_array(bytes_[name]).any() for name in read if name.startswith("zeros"))


@pytest.mark.parametrize("rows", [1, 5])
def test_sums_of_bytes_are_the_same_on_every_cpu(bytes_bundle: Bundle, rows: int):
    """With VNNI they are whatever is done; on an x86-64 CPU without it this is a test."""
    engine = OnnxRuntimeEngine(bytes_bundle, threads=2, lanes=True)
    for one in (engine, *engine.open_lanes()):
        one.feeds(Bucket(rows, 1))["values"][...] = 255
        found = one.run(Bucket(rows, 1))
        np.testing.assert_allclose(found["embedding"], np.full((rows, DEPTH), SUM), rtol=1e-6)
        np.testing.assert_array_equal(found["convolved"], np.full((rows, DEPTH), 250))


@pytest.mark.parametrize(
    ("precision", "narrow", "level", "entry"),
    [
        ("int8", True, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, "1"),
        ("int8", False, ort.GraphOptimizationLevel.ORT_DISABLE_ALL, None),
        ("fp32", True, ort.GraphOptimizationLevel.ORT_DISABLE_ALL, None),
    ],
)
def test_graphs_of_bytes_are_opened_otherwise_without_vnni(
    bytes_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    narrow: bool,
    level: object,
    entry: str | None,
):
    monkeypatch.setattr("engine.backends.onnxruntime.sums_bytes_in_16_bits", lambda: narrow)
    write_manifest(bytes_bundle.path, replace(bytes_bundle.manifest, precision=precision))
    opened = OnnxRuntimeEngine(open_bundle(bytes_bundle.path), threads=2, lanes=True)
    for one in (opened, *opened.open_lanes()):
        options = one._session.get_session_options()
        assert options.graph_optimization_level == level
        assert _entry(options, "session.x64quantprecision") == entry


def _entry(options: Any, name: str) -> str | None:
    try:
        found: str = options.get_session_config_entry(name)
    except RuntimeError:
        return None
    return found
