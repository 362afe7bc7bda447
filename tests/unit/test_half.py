"""Which nodes run in half precision: heavy work does; sums, exponentials, masks and positions do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.bert_graph import Shape, bert_graph, weights_of
from export.optimize import add_graph
from export.precision.half import half

FLOAT, HALF, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
SQUARE = np.eye(64, dtype=np.float32)


def write(folder: Path, nodes: Sequence[Any], outputs: dict[str, Sequence[Any]], **weights: Any) -> Path:
    """A graph from x (batch, 64), float, and mask (batch, length), int32."""
    inputs = [
        helper.make_tensor_value_info("x", FLOAT, ["batch", 64]),
        helper.make_tensor_value_info("mask", TensorProto.INT32, ["batch", "length"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        inputs,
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "fp32.onnx"
    add_graph(model, path, {})
    return path


def types(path: Path) -> dict[str, int]:
    """Output name -> element type, of every node."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    found = {one.name: one.type.tensor_type.elem_type for one in [*graph.input, *graph.value_info, *graph.output]}
    return {name: found[name] for node in graph.node for name in node.output}


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def test_what_is_added_to_the_graph_stands_in_the_same_order_in_every_run(tmp_path: Path):
    rows = {name: np.ones((1, 64), np.float32) for name in "hbgdaecf"}  # a set of them has another order in each
    nodes = [node("MatMul", "x w", "product"), node("Concat", f"product {' '.join(rows)}", "y", axis=0)]
    made = onnx.load(half(write(tmp_path, nodes, {"y": ["rows", 64]}, w=SQUARE, **rows), "fp16"))
    assert [one.name for one in made.graph.initializer if one.name[0] in rows] == [
        f"{one}/float16" for one in "abcdefgh"
    ]


def test_products_are_half_and_what_sums_is_not(tmp_path: Path):
    nodes = [
        node("MatMul", "x w", "product"),
        node("Add", "product b", "biased"),
        node("Relu", "biased", "active"),
        node("MatMul", "active w", "again"),
        node("Softmax", "again", "chances"),
        node("MatMul", "chances w", "mixed"),
        node("ReduceMean", "mixed", "y", axes=[1], keepdims=1),
    ]
    path = half(write(tmp_path, nodes, {"y": ["batch", 1]}, w=SQUARE, b=np.ones(64, np.float32)), "fp16")
    found = types(path)
    for name in ("product", "biased", "active", "again", "mixed"):
        assert found[name] == HALF, name
    for name in ("chances", "y"):
        assert found[name] == FLOAT, name


def test_masks_and_positions_stay_fp32_where_they_meet_half(tmp_path: Path):
    """Minus infinity of fp32 is none in fp16 any more; it is added before the softmax, in fp32."""
    lowest = np.array(np.finfo(np.float32).min, np.float32)
    nodes = [
        node("Cast", "mask", "real", to=FLOAT),
        node("Sub", "one real", "hidden"),
        node("Mul", "hidden lowest", "bias"),
        node("MatMul", "x w", "scores"),
        node("Add", "scores bias", "masked"),
        node("Softmax", "masked", "chances"),
        node("MatMul", "real frequencies", "angles"),
        node("Cos", "angles", "waves"),
        node("MatMul", "chances w", "mixed"),
        node("Mul", "mixed waves", "y"),
    ]
    weights = {"w": SQUARE, "one": np.float32(1), "lowest": lowest, "frequencies": np.ones((64, 1), np.float32)}
    path = half(write(tmp_path, nodes, {"y": ["batch", 64]}, **weights), "fp16")
    found = types(path)
    for name in ("hidden", "bias", "masked", "chances", "angles", "waves", "y"):
        assert found[name] == FLOAT, name
    for name in ("scores", "mixed"):
        assert found[name] == HALF, name
    session = ort.InferenceSession(str(path))
    mask = np.ones((2, 64), np.int32)
    mask[:, 32:] = 0
    (y,) = session.run(None, {"x": np.ones((2, 64), np.float32), "mask": mask})
    assert np.isfinite(y).all()


def test_a_layer_norm_of_single_operators_is_fp32_and_its_residual_is_half(tmp_path: Path):
    nodes = [
        node("MatMul", "x w", "h"),
        node("ReduceMean", "h", "mean", axes=[1]),
        node("Sub", "h mean", "centred"),
        node("Pow", "centred two", "squares"),
        node("ReduceMean", "squares", "variance", axes=[1]),
        node("Add", "variance eps", "floored"),
        node("Sqrt", "floored", "deviation"),
        node("Div", "centred deviation", "normal"),
        node("Mul", "normal scale", "scaled"),
        node("MatMul", "scaled w", "product"),
        node("Add", "product scaled", "residual"),
        node("MatMul", "residual w", "y"),
    ]
    weights = {"w": SQUARE, "two": np.float32(2), "eps": np.float32(1e-12), "scale": np.ones(64, np.float32)}
    found = types(half(write(tmp_path, nodes, {"y": ["batch", 64]}, **weights), "fp16"))
    for name in ("mean", "centred", "squares", "variance", "floored", "deviation", "normal", "scaled", "y"):
        assert found[name] == FLOAT, name
    for name in ("h", "product", "residual"):
        assert found[name] == HALF, name


def test_an_output_that_others_read_keeps_its_name_and_type(tmp_path: Path):
    nodes = [node("MatMul", "x w", "y"), node("MatMul", "y w", "z"), node("Exp", "y", "e")]
    path = half(write(tmp_path, nodes, {"y": ["batch", 64], "z": ["batch", 64], "e": ["batch", 64]}, w=SQUARE), "fp16")
    x = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    y, z, e = ort.InferenceSession(str(path)).run(None, {"x": x, "mask": np.ones((2, 1), np.int32)})
    np.testing.assert_allclose(y, x, atol=1e-3)
    np.testing.assert_allclose(z, x, atol=1e-3)
    np.testing.assert_allclose(e, np.exp(x), atol=5e-3)


def test_numbers_inside_a_branch_see_fp32(tmp_path: Path):
    def branch(name: str, kind: str) -> Any:
        output = helper.make_tensor_value_info(f"{name}_y", FLOAT, ["batch", 64])
        return helper.make_graph([node(kind, "h", f"{name}_y")], name, [], [output])

    nodes = [
        node("MatMul", "x w", "h"),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch("then", "Exp"), else_branch=branch("else", "Neg")),
    ]
    path = half(write(tmp_path, nodes, {"y": ["batch", 64]}, w=SQUARE, flag=np.array(True)), "fp16")
    x = np.full((1, 64), 0.5, np.float32)
    (y,) = ort.InferenceSession(str(path)).run(None, {"x": x, "mask": np.ones((1, 1), np.int32)})
    np.testing.assert_allclose(y, np.exp(x), atol=1e-2)


def test_weights_take_half_the_room_and_mask_constants_stay_finite(tmp_path: Path):
    nodes = [node("MatMul", "x w", "h"), node("Add", "h low", "k"), node("MatMul", "k w", "y")]
    low = np.full(64, np.finfo(np.float32).min, np.float32)
    source = write(tmp_path, nodes, {"y": ["batch", 64]}, w=SQUARE, low=low)
    path = half(source, "fp16")
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert all(one.dtype == np.float16 and np.isfinite(one).all() for one in values.values())
    assert path.with_suffix(".bin").stat().st_size == source.with_suffix(".bin").stat().st_size / 2


def test_bf16_is_rounded_to_the_nearest(tmp_path: Path):
    import torch

    rng = np.random.default_rng(0)
    w = (rng.standard_normal((64, 64)) * 10.0 ** rng.integers(-6, 6, (64, 64))).astype(np.float32)
    path = half(write(tmp_path, [node("MatMul", "x w", "y")], {"y": ["batch", 64]}, w=w), "bf16")
    (tensor,) = onnx.load(path).graph.initializer
    assert tensor.data_type == BF16
    bits = np.frombuffer(tensor.raw_data, np.uint16).reshape(64, 64)
    ours = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(ours, torch.from_numpy(w).bfloat16().float().numpy())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_equal_graphs_give_equal_bytes(tmp_path: Path, precision: str):
    shape = Shape(2, 32, 4, 64, vocab_size=50, max_position_embeddings=24)
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        add_graph(bert_graph(shape, weights_of(shape)), tmp_path / name / "fp32.onnx", {})
        path = half(tmp_path / name / "fp32.onnx", precision)
        written.append((path.read_bytes(), path.with_suffix(".bin").read_bytes()))
    assert written[0] == written[1]
