import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engine.batching.finite import rows_not_finite
from engine.tensors import Array

floats = st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=1, max_dims=3, max_side=4))
)


@given(floats, st.integers(1, 4), st.booleans())
def test_exactly_the_rows_with_nan_or_infinity_are_found(values: Array, count: int, wide: bool):
    if wide:  # too many numbers to be looked at one by one
        values = np.repeat(values.reshape(len(values), -1), 4096, axis=1)
    count = min(count, len(values))
    expected = {i: "a" for i in range(count) if not np.isfinite(values[i]).all()}
    assert rows_not_finite({"a": values}, count) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("width", [7, 7000])
def test_one_bad_number_among_many(value: float, dtype: type, width: int):
    values: Array = np.ones((3, 5, width), dtype)
    values[1, 4, 6] = value
    assert rows_not_finite({"a": values, "b": values}, 3) == {1: "a"}
    assert rows_not_finite({"a": values}, 1) == {}  # the rest is padding


@pytest.mark.parametrize("width", [8, 8000])
def test_large_numbers_are_finite(width: int):
    for dtype in (np.float16, np.float32):
        values = np.full((2, width), np.finfo(dtype).max, dtype)  # whose sum is not
        assert rows_not_finite({"a": values}, 2) == {}
    assert rows_not_finite({"a": np.array([[np.inf, -np.inf] * width])}, 1) == {0: "a"}


def test_whole_numbers_and_booleans_are_left_alone():
    outputs = {"ids": np.full((2, 3), np.iinfo(np.int32).min, np.int32), "mask": np.ones((2, 3), bool)}
    assert rows_not_finite(outputs, 2) == {}


def test_finite_outputs_cost_no_array():
    values = np.ones((32, 512, 64), np.float32)
    rows_not_finite({"a": values}, 32)
    tracemalloc.start()
    try:
        rows_not_finite({"a": values}, 32)
        assert tracemalloc.get_traced_memory()[1] < values.nbytes / 50
    finally:
        tracemalloc.stop()
