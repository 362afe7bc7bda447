"""The int8 ladder: what smoothing keeps, and the fewest matrices that stay fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.tensors import Array
from export.errors import ParityFailed
from export.int8.dynamic import DynamicInt8, _loss
from export.int8.search import Step, search
from export.int8.smooth import maxima, products, smooth
from export.optimize import optimize

RNG = np.random.default_rng(0)
WIDTH = 16


def two_products_of_one_input() -> object:
    weights = [RNG.normal(size=(WIDTH, 8)).astype(np.float32) for _ in range(2)]
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["y"], "relu"),
            helper.make_node("MatMul", ["y", "w0"], ["a"], "first"),
            helper.make_node("MatMul", ["y", "w1"], ["b"], "second"),
            helper.make_node("Add", ["a", "b"], ["z"], "add"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("z", "y")],
        [numpy_helper.from_array(weight, f"w{number}") for number, weight in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: object, x: Array) -> list[Array]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
    found: list[Array] = session.run(None, {"x": x})
    return found


def test_smoothing_changes_no_answer_and_makes_int8_lose_less():
    model = two_products_of_one_input()
    x = np.abs(RNG.normal(size=(50, WIDTH))).astype(np.float32)
    x[:, 3] *= 100  # one channel is far larger than the others: what one scale for all cannot fit
    z, y = run(model, x)
    assert [node.name for node in products(model)] == ["first", "second"]
    before = _loss(y, numpy_helper.to_array(model.graph.initializer[0]))  # type: ignore[attr-defined]
    smooth(model, maxima([{"y": y[:25]}, {"y": y[25:]}]), {"y": 0.7})
    smoothed_z, unsmoothed_y = run(model, x)
    np.testing.assert_allclose(smoothed_z, z, rtol=1e-4, atol=1e-3)
    assert np.array_equal(unsmoothed_y, y)  # whatever else reads it must not notice
    # The two products share one division; the weights that nothing reads are gone.
    graph = model.graph  # type: ignore[attr-defined]
    assert [node.op_type for node in graph.node] == ["Relu", "Mul", "MatMul", "MatMul", "Add"]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert set(weights) == {"y/smooth_factor", "first/smooth_weight", "second/smooth_weight"}
    after = _loss(y * weights["y/smooth_factor"], weights["first/smooth_weight"])
    assert after < before / 10


@pytest.mark.parametrize(("size", "left"), [(WIDTH, []), (1, ["Add"])])
def test_a_bias_is_part_of_the_product_where_it_is_as_wide(tmp_path: Path, size: int, left: list[str]):
    """The kernel reads as many numbers as the product is wide, also behind the end of a shorter bias."""
    bias = np.full(size, 3, np.float32)
    weight = RNG.normal(size=(WIDTH, WIDTH)).astype(np.float32)
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length", WIDTH]) for name in "xy"]
    nodes = [
        # So that shapes are not known, and the fusions of ONNX Runtime itself leave the bias.
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Reshape", ["x", "shape"], ["same"], "reshape"),
        helper.make_node("MatMul", ["same", "w"], ["product"], "product"),
        helper.make_node("Add", ["bias", "product"], ["y"], "add"),
    ]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "bias")]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    portable, _, places = optimize(model, tmp_path / "graphs", tmp_path / "work")
    path = DynamicInt8(portable, tmp_path / "int8", places, []).write(Step())
    kinds = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    assert kinds[kinds.index("DynamicQuantizeMatMul") + 1 :] == left
    x = RNG.normal(size=(2, 5, WIDTH)).astype(np.float32)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight + bias, atol=0.2)


NAMES = [f"m{number}" for number in range(20)]
INPUTS = [(f"x{number}", 0.7) for number in range(24)]


def attempts(smoothed: int, kept: int, tried: list[Step]) -> Callable[[Step], dict[str, Any]]:
    """A gate that takes steps with so many inputs smoothed and matrices kept at least."""

    def attempt(step: Step) -> dict[str, Any]:
        tried.append(step)
        if len(step.smoothed) < smoothed or len(step.kept) < kept:
            raise ParityFailed("too far off", [("a text", "a graph", "0.5")])
        return {"kept": len(step.kept)}

    return attempt


@pytest.mark.parametrize("needed", range(9))
def test_the_fewest_matrices_are_kept(needed: int):
    tried: list[Step] = []
    figures, step = search(attempts(24, needed, tried), lambda: INPUTS, lambda smoothed: NAMES)
    assert step == Step(tuple(INPUTS), tuple(NAMES[:needed]))
    assert figures == {"kept": needed}
    assert len(tried) == len(set(tried))


@pytest.mark.parametrize(
    ("needed", "found"), [(1, 4), (4, 4), (5, 5), (6, 6), (7, 7), (9, 9), (13, 13), (17, 17), (21, 21), (24, 24)]
)
def test_no_more_inputs_are_smoothed_than_needed(needed: int, found: int):
    tried: list[Step] = []
    _, step = search(attempts(needed, 0, tried), lambda: INPUTS, lambda smoothed: NAMES)
    assert step == Step(tuple(INPUTS[:found]))
    assert tried[0] == Step()
    assert len(tried) == len(set(tried))


def test_of_many_inputs_a_few_more_than_needed_are_smoothed_rather_than_tried_one_by_one():
    tried: list[Step] = []
    inputs = [(f"x{number}", 0.7) for number in range(240)]
    _, step = search(attempts(101, 0, tried), lambda: inputs, lambda smoothed: NAMES)
    assert 101 <= len(step.smoothed) <= 110
    assert len(tried) < 8


def test_more_than_half_kept_is_no_int8_any_more():
    with pytest.raises(ParityFailed):
        search(attempts(0, 11, []), lambda: INPUTS, lambda smoothed: NAMES)


def test_nothing_is_measured_for_a_model_that_passes_whole():
    def never(*arguments: object) -> Any:
        raise AssertionError("not needed")

    assert search(lambda step: {"ok": True}, never, never) == ({"ok": True}, Step())


def test_a_stack_of_matrices_stays_as_it_is(tmp_path: Path):
    """As of experts: ONNX Runtime has no kernel for one with a scale a channel. Beside it a bias of just under 1 kB."""
    stack, matrix = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, WIDTH, 250), (250, WIDTH)))
    bias = RNG.normal(size=250).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "stack"], ["a"], "experts"),
            helper.make_node("Add", ["a", "bias"], ["b"], "add"),
            helper.make_node("MatMul", ["b", "matrix"], ["y"], "down"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, WIDTH])],
        [numpy_helper.from_array(one, name) for one, name in ((stack, "stack"), (matrix, "matrix"), (bias, "bias"))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = RNG.normal(size=(2, 3, WIDTH)).astype(np.float32)
    (exact,) = run(model, x)
    portable, fused, places = optimize(model, tmp_path / "graphs", tmp_path / "work")
    path = DynamicInt8(portable, tmp_path / "int8", places, []).write(Step())
    for file, loss in ((fused, 1e-6), (path, 0.03)):
        (found,) = ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"x": x})
        assert np.linalg.norm(found - exact) <= loss * np.linalg.norm(exact)
    kinds = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    assert kinds.count("MatMul") == 1
    assert "DynamicQuantizeMatMul" in kinds
