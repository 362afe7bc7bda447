"""Pooling as ONNX nodes: from a vector a token to a vector a text. Rule: rows are padded at the end, never in front."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from engine.vectors import OUTPUT
from export.nodes import Nodes, set_outputs

_FEWEST_TOKENS = 1e-9  # sentence-transformers' floor under the count that a mean divides by


def append_pooling(graph: Any, mode: str, hidden: str, mask: str, dimension: int) -> None:
    """Make `embedding`, float32 (batch, dimension), the only output of `graph`, in place.

    `hidden` names the token vectors, float32 (batch, length, dimension); `mask` the input, int32 (batch, length), that
    is 1 for tokens and 0 for padding. `mode` is one of POOLINGS.
    """
    POOLINGS[mode](Nodes(graph, "pooling"), hidden, mask)
    set_outputs(graph, [(OUTPUT, "float32", ("batch", dimension))])


def _mean(nodes: Nodes, hidden: str, mask: str) -> None:
    """sum(hidden * mask) / max(sum(mask), 1e-9) over the tokens."""
    tokens = nodes.constant("tokens_axis", [1], np.int64)
    weights = nodes.add("Cast", "mask_float", mask, to=TensorProto.FLOAT)
    weights = nodes.add("Unsqueeze", "weights", weights, nodes.constant("vector_axis", [2], np.int64))
    total = nodes.add("ReduceSum", "total", nodes.add("Mul", "masked", hidden, weights), tokens, keepdims=0)
    count = nodes.add("ReduceSum", "count", weights, tokens, keepdims=0)
    count = nodes.add("Max", "count_floor", count, nodes.constant("fewest", _FEWEST_TOKENS, np.float32))
    nodes.add("Div", "mean", total, count, output=OUTPUT)


def _cls(nodes: Nodes, hidden: str, mask: str) -> None:
    """hidden[:, 0]."""
    nodes.add("Gather", "first", hidden, nodes.constant("first_index", 0, np.int64), axis=1, output=OUTPUT)


def _weightedmean(nodes: Nodes, hidden: str, mask: str) -> None:
    """The mean in which the n-th token counts n times.

    Of a row of N tokens it weighs n / N: a long row's n times its values would not fit into half precision.
    """
    shape = nodes.add("Shape", "shape", mask)
    length = nodes.add("Gather", "length", shape, nodes.constant("length_axis", 1, np.int64), axis=0)
    one = nodes.constant("one", 1, np.int64)
    numbers = nodes.add("Range", "numbers", one, nodes.add("Add", "end", length, one), one)
    numbers = nodes.add("Cast", "numbers_float", numbers, to=TensorProto.FLOAT)
    real = nodes.add("Cast", "real", mask, to=TensorProto.FLOAT)
    of_row = nodes.add("ReduceSum", "of_row", real, nodes.constant("row_axis", [1], np.int64), keepdims=1)
    of_row = nodes.add("Max", "of_row_floor", of_row, nodes.constant("fewest_of_row", _FEWEST_TOKENS, np.float32))
    _mean(nodes, hidden, nodes.add("Div", "numbered", nodes.add("Mul", "numbered_real", real, numbers), of_row))


def _lasttoken(nodes: Nodes, hidden: str, mask: str) -> None:
    """hidden[:, sum(mask) - 1], row by row."""
    wide_mask = nodes.add("Cast", "mask_wide", mask, to=TensorProto.INT64)
    count = nodes.add("ReduceSum", "count", wide_mask, nodes.constant("tokens_axis", [1], np.int64), keepdims=1)
    index = nodes.add("Sub", "last_index", count, nodes.constant("one", 1, np.int64))
    nodes.add("GatherND", "last", hidden, index, batch_dims=1, output=OUTPUT)


def _max(nodes: Nodes, hidden: str, mask: str) -> None:
    """The largest value of each component over the tokens."""
    real = nodes.add("Cast", "mask_bool", mask, to=TensorProto.BOOL)
    real = nodes.add("Unsqueeze", "real", real, nodes.constant("vector_axis", [2], np.int64))
    lowest = nodes.constant("lowest", np.finfo(np.float32).min, np.float32)
    masked = nodes.add("Where", "masked", real, hidden, lowest)
    nodes.add("ReduceMax", "largest", masked, axes=[1], keepdims=0, output=OUTPUT)


POOLINGS: Mapping[str, Callable[[Nodes, str, str], None]] = {
    "mean": _mean,
    "cls": _cls,
    "lasttoken": _lasttoken,
    "max": _max,
    "weightedmean": _weightedmean,
}
"""By sentence-transformers' names."""
