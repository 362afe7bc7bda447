"""int8 with calibrated scales: ranges that do not depend on the order of rows, and the forms that a graph takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.tensors import Array
from export.int8.calibrate import METHODS, entropy, ranges
from export.int8.static import COMPARED, CPU, TENSORRT, activations, quantize
from export.optimize import fuse

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("method", METHODS)
def test_a_range_does_not_depend_on_the_order_of_what_comes(method: str):
    rows = [{"x": (RNG.normal(size=(8, 16)) * size).astype(np.float32)} for size in (1e-5, 1.0, 1.0)]
    low, high = min(float(row["x"].min()) for row in rows), max(float(row["x"].max()) for row in rows)
    found = ranges(rows)[method]["x"]
    assert low * 1.01 <= found[0] <= low / 8
    assert high / 8 < found[1] <= high * 1.01
    assert ranges(rows[::-1])[method]["x"] == found


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_an_expert_that_no_token_went_to(method: str):
    empty, values = np.zeros((0, 4), np.float32), np.ones((2, 4), np.float32)
    found = ranges([{"never": empty, "once": empty}, {"never": empty, "once": values}])[method]
    assert found["never"] == (0.0, 0.0)
    assert found["once"] == ranges([{"once": values}])[method]["once"]


def test_a_tensor_just_below_a_kilobyte_beside_a_graph_is_found_again(tmp_path: Path):
    bias = numpy_helper.from_array(RNG.normal(size=250).astype(np.float32), "bias")  # as of a head of 250 labels
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 250]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "bias"], ["y"])], "g", shape[:1], shape[1:], [bias])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "whole.onnx", save_as_external_data=True, location="whole.bin")
    (found,) = onnx.load(fuse(tmp_path / "whole.onnx", tmp_path / "fused")).graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(found), numpy_helper.to_array(bias))


def test_one_value_that_is_far_larger_than_all_others_is_cut_off():
    values = RNG.normal(size=200_000).astype(np.float32)
    values[0] = 100.0
    for method in METHODS:
        assert 2 < ranges([{"x": values}])[method]["x"][1] < 50


def test_what_fits_the_levels_is_not_cut():
    counts = np.zeros(512)
    counts[::4] = 100.0  # every level holds one bin of them: nothing is lost
    assert entropy(counts[:509]) == 509


def test_zeros_have_a_range_too():
    assert ranges([{"x": np.zeros((2, 3), np.float32)}])["entropy"]["x"] == (0.0, 0.0)


def small_cnn() -> onnx.ModelProto:
    """Conv, Relu, Conv, a sum with what went in, Relu, Conv, a pooling, and a matrix."""
    shapes = {"w0": (8, 3, 3, 3), "w1": (8, 8, 3, 3), "b0": (8,), "w2": (8, 8, 1, 1), "m": (8, 4)}
    pads = {"pads": [1, 1, 1, 1]}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], "first", **pads),
            helper.make_node("Relu", ["c0"], ["r0"], "relu"),
            helper.make_node("Identity", ["b0"], ["b1"], "same bias"),
            helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], "second", **pads),
            helper.make_node("Add", ["c1", "r0"], ["sum"], "add"),
            helper.make_node("Relu", ["sum"], ["r1"], "relu1"),
            helper.make_node("Conv", ["r1", "w2"], ["c2"], "third"),
            helper.make_node("GlobalAveragePool", ["c2"], ["pooled"], "pool"),
            helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
            helper.make_node("MatMul", ["flat", "m"], ["y"], "head"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


CNN = small_cnn()
PIXELS = RNG.normal(size=(4, 3, 8, 8)).astype(np.float32)


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def run(model: onnx.ModelProto, names: list[str] | None = None) -> list[Array]:
    model = copied(model)
    for name in names or ():
        model.graph.output.append(helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the engine opens it without VNNI
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(names, {"x": PIXELS})
    return found


def quantized(form: str, kept: tuple[str, ...] = ()) -> onnx.ModelProto:
    names = [name for name in activations(CNN, form, kept) if name != "x"]
    seen = {**dict(zip(names, run(CNN, names), strict=True)), "x": PIXELS}
    model = copied(CNN)
    quantize(model, ranges([seen])["percentile"], kept, form)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("form", [TENSORRT, CPU])
def test_every_form_answers_nearly_as_fp32_does(form: str):
    (expected,), (found,) = run(CNN), run(quantized(form))
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_what_is_compared_for_tensorrt_answers_as_its_graph_does():
    (expected,), (found,) = run(quantized(TENSORRT)), run(quantized(COMPARED))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_on_a_cpu_convolutions_and_their_sum_become_kernels_on_bytes(tmp_path: Path):
    path = tmp_path / "int8.onnx"
    onnx.save(quantized(CPU), path)
    kinds = Counter(node.op_type for node in onnx.load(fuse(path, tmp_path / "work")).graph.node)
    assert (kinds["QLinearConv"], kinds["QLinearAdd"], kinds["MatMulIntegerToFloat"]) == (3, 1, 1)
    assert not {"Conv", "Add", "Relu", "MatMul"} & set(kinds)


def test_what_is_kept_stays_in_fp32():
    nodes = {node.name: node for node in quantized(TENSORRT, kept=("second",)).graph.node}
    assert list(nodes["second"].input) == ["r0", "w1", "b1"]
    assert list(nodes["first"].input) == ["x/dequantized", "first/weight/dequantized", "b0"]
