"""Tables as bytes: answers within half a step of every row, and only where nothing but rows is read."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.tensors import Array
from export.int8.tables import LARGE, bytes_of_rows, shrink

WIDTH = 256
ROWS = LARGE // WIDTH


def a_model(table: Array, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    graph = helper.make_graph(
        [*nodes, helper.make_node("Identity", ["rows"], ["answer"])],
        "model",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, ["batch", "length"])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["a", "b", "c"])],
        [numpy_helper.from_array(table, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def gather(**attributes: int) -> onnx.NodeProto:
    return helper.make_node("Gather", ["table", "ids"], ["rows"], "words", **attributes)


def answer(model: onnx.ModelProto, ids: Array) -> Array:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"ids": ids})
    return np.asarray(found)


def a_table(rows: int = ROWS) -> Array:
    random = np.random.default_rng(0)
    table = random.standard_normal((rows, WIDTH), np.float32) * np.geomspace(1e-6, 1e3, rows, dtype=np.float32)[:, None]
    table[7] = 0.0
    return table


@pytest.mark.parametrize("ids", [[[0, 7, ROWS - 1]], [[7], [7]], [[-1, 3], [4, 5]]])
def test_rows_come_within_half_a_step(ids: list[list[int]]):
    table, chosen = a_table(), np.array(ids, np.int32)
    model = a_model(table, gather())
    shrink(model)

    found = answer(model, chosen)

    assert sorted(tensor.name for tensor in model.graph.initializer) == ["table/bytes", "table/scales"]
    rows = table[chosen]
    steps = np.abs(rows).max(axis=-1, keepdims=True) / 127
    assert found.dtype == np.float32
    assert (np.abs(found - rows) <= 0.5001 * steps).all()
    assert not found[chosen == 7].any()


def test_the_largest_value_of_a_row_stays():
    table = a_table(64)
    values, scales = bytes_of_rows(table)
    assert np.abs(values).max() == 127
    np.testing.assert_allclose((values * scales).max(axis=1), table.max(axis=1), rtol=1 / 127)


def test_a_table_that_several_read_is_shrunk_once():
    more = helper.make_node("Gather", ["table", "ids"], ["more"], "again")
    model = a_model(a_table(), more, helper.make_node("Add", ["more", "more"], ["unused"]), gather())
    shrink(model)
    assert [tensor.name for tensor in model.graph.initializer] == ["table/bytes", "table/scales"]
    assert np.isfinite(answer(model, np.array([[1, 2]], np.int32))).all()


@pytest.mark.parametrize(
    ("rows", "nodes"),
    [
        (ROWS, [gather(axis=1)]),
        (ROWS - 1, [gather()]),
        (ROWS, [gather(), helper.make_node("MatMul", ["rows", "table"], ["product"])]),
    ],
    ids=["columns", "small", "also a matrix"],
)
def test_other_tables_stay_as_they_are(rows: int, nodes: list[onnx.NodeProto]):
    model = a_model(a_table(rows), *nodes)
    before = model.SerializeToString(deterministic=True)
    shrink(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_table_that_is_an_output_stays():
    model = a_model(a_table(), gather())
    model.graph.output.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, [ROWS, WIDTH]))
    before = model.SerializeToString(deterministic=True)
    shrink(model)
    assert model.SerializeToString(deterministic=True) == before
