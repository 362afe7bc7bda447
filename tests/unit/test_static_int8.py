"""Ranges of activations: found whatever order the rows come in."""

from __future__ import annotations

import numpy as np
import pytest

from export.static_int8 import METHODS, ranges

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_that_is_far_larger_than_the_first_does_not_multiply_the_bins(method: str):
    rows = [{"x": (RNG.normal(size=(8, 16)) * size).astype(np.float32)} for size in (1e-5, 1.0, 1.0)]
    largest = max(float(np.abs(row["x"]).max()) for row in rows)
    found = ranges(lambda: rows, method)["x"]
    assert largest / 8 < found <= largest * 1.01
    assert ranges(lambda: rows[::-1], method)["x"] == pytest.approx(found)
