"""Rows into buffers: lengths, fixed shapes, and neither costs an allocation."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from engine.bucket import Bucket
from engine.bundle import Graph, Manifest
from engine.tensors import Array, Row, TensorSpec, fill

TOKENS = TensorSpec("x", "int32", ("batch", "length"), 7)
MEL = TensorSpec("x", "float32", ("batch", 4, "length"))
PIXELS = TensorSpec("x", "uint8", ("batch", 3, 2, 2))


def filled(spec: TensorSpec, rows: list[Row], bucket: Bucket) -> Array:
    target = np.full(spec.shape_at(bucket), 99, spec.dtype)
    fill(target, rows, spec)
    return target


def test_a_shorter_row_is_padded_and_the_last_one_repeated():
    rows = [Row({"x": np.array([1, 2, 3], np.int32)}, 3), Row({"x": np.array([4], np.int32)}, 1)]
    expected = [[1, 2, 3, 7], [4, 7, 7, 7], [4, 7, 7, 7]]
    assert filled(TOKENS, rows, Bucket(3, 4)).tolist() == expected


def test_the_length_need_not_be_the_first_axis():
    values = np.arange(8, dtype=np.float32).reshape(4, 2)
    found = filled(MEL, [Row({"x": values}, 2)], Bucket(1, 3))
    assert np.array_equal(found[0, :, :2], values)
    assert not found[0, :, 2:].any()


def test_fixed_shapes_are_copied_whole():
    rows = [Row({"x": np.full((3, 2, 2), value, np.uint8)}, 1) for value in (1, 2)]
    found = filled(PIXELS, rows, Bucket(3, 1))
    assert found[:, 0, 0, 0].tolist() == [1, 2, 2]
    assert PIXELS.length_axis is None


def test_a_row_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match="broadcast"):
        filled(PIXELS, [Row({"x": np.zeros((3, 2, 3), np.uint8)}, 1)], Bucket(1, 1))


@pytest.mark.parametrize(
    ("spec", "shape", "length"), [(TOKENS, (5,), 5), (MEL, (4, 5), 5), (PIXELS, (3, 2, 2), 1)], ids=str
)
def test_filling_allocates_nothing(spec: TensorSpec, shape: tuple[int, ...], length: int):
    rows = [Row({"x": np.zeros(shape, spec.dtype)}, length)]
    target = np.zeros(spec.shape_at(Bucket(2, 8)), spec.dtype)
    domain = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
    tracemalloc.start()
    try:
        fill(target, rows, spec)
        assert not tracemalloc.take_snapshot().filter_traces([domain]).statistics("filename")
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("spec", "longest"), [(TOKENS, 32), (MEL, 32), (PIXELS, 1)])
def test_the_longest_row_of_a_graph(spec: TensorSpec, longest: int):
    graphs = {"image": Graph((spec,), (), {})}
    manifest = Manifest("m", None, "A", "t", {"max_length": 32}, "fp32", graphs, {})
    assert manifest.max_length("image") == longest
