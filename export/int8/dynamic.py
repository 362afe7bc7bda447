"""Stage 6, dynamic int8 for CPUs: weights as bytes, found by trying from the fastest down, each step through the gate.

Weight matrices are int8 with a scale a column, activations are scaled a tensor when they are
known, large embedding tables are int8 with a scale a row (export/int8/tables.py). Everything else stays fp32. The
portable fp32 graph stays in the bundle, for a GPU.

The steps: every weight matrix; the same with some of the inputs of products smoothed (smooth.py), which costs a
multiplication each; all of them smoothed; the same, with some matrices left in fp32. Which ones is measured, not
guessed: of the inputs whose products come nearer to fp32 by it those are smoothed first, and of the matrices those are
taken back first, with which the model's answer comes nearest to fp32 (export/int8/gate.py).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from engine.tensors import Array, Row
from export.command.said import unlogged
from export.int8.graph import finish
from export.int8.search import Step
from export.int8.smooth import ALPHAS, maxima, products, scale_of, smooth
from export.int8.tables import shrink
from export.optimize import Places, add_graph, fuse
from export.precision.observed import observed

_ROWS_OBSERVED = 60
_ROWS_COMPARED, _TOKENS_COMPARED = 24, 128


def _stacked(model: Any) -> list[str]:
    """Products with a stack of matrices, as of gpt_oss's experts: ONNX Runtime has no kernel with a scale a channel."""
    stacks = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 2}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in stacks]


class DynamicInt8:
    """Makes int8 graphs of the portable graph at `portable`, beside it: a Form (export/int8/ladder.py).

    `work` is a folder that comes and goes; `rows` are what activations are observed on.
    """

    methods = ("",)

    def __init__(self, portable: Path, work: Path, places: Places, rows: Sequence[Row]) -> None:
        self.path = portable.with_name("int8.cpu.onnx")
        self.portable = portable
        self.work = work
        self.places = places
        self.rows = rows[:_ROWS_OBSERVED]
        self._largest: Mapping[str, Array] | None = None
        self._written: Step | None = None

    def untuned(self) -> Path:
        """Write the graph of the first step."""
        return self.write(Step())

    def trial(self, step: Step, method: str = "") -> Path:
        """Write what the gate compares: the graph itself."""
        return self.write(step)

    def write(self, step: Step, method: str = "") -> Path:
        """Write the graph of `step`, unless it is there; it replaces the one before. There is nothing to calibrate."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        if step == self._written and self.path.exists():
            return self.path
        whole, quantized = self.whole(step), self.work / "quantized.onnx"
        # ONNX Runtime 1.18 reads it, and onnx has removed it.
        onnx.mapping = SimpleNamespace(TENSOR_TYPE_TO_NP_TYPE={TensorProto.INT8: np.dtype(np.int8)})
        with unlogged(logging.WARNING):  # advice to pre-process, which the fusing afterwards does
            quantize_dynamic(
                whole,
                quantized,
                per_channel=True,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul"],
                nodes_to_exclude=[*step.kept, *_stacked(onnx.load(whole, load_external_data=False))],
                use_external_data_format=True,
                extra_options={"MatMulConstBOnly": True},  # products of two activations have nothing to gain
            )
        self._written = step
        return self.fused(quantized, self.path.name)

    def whole(self, step: Step) -> Path:
        """The fp32 graph with the inputs of `step` smoothed, in the folder that comes and goes."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        whole = self.work / "whole.onnx"
        model = onnx.load(self.portable)
        if step.smoothed:
            smooth(model, self._maxima(), dict(step.smoothed))
        onnx.save(model, whole, save_as_external_data=True, location="whole.bin")
        return whole

    def fused(self, quantized: Path, name: str) -> Path:
        """Let ONNX Runtime optimise the graph at `quantized`, and write it as `name` beside the portable one."""
        path = self.portable.with_name(name)
        fused = onnx.load(fuse(quantized, self.work / "fused"))
        finish(fused, self._known_ranks())
        shrink(fused)
        add_graph(fused, path, self.places)
        shutil.rmtree(self.work)
        return path

    def gaining(self) -> list[tuple[str, float]]:
        """Inputs of products that smoothing helps, those first whose products gain most, with the best alpha each."""
        model = onnx.load(self.portable)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        largest = self._maxima()
        sharing: dict[str, list[Array]] = {}
        for node in products(model):
            sharing.setdefault(node.input[0], []).append(numpy_helper.to_array(weights[node.input[1]]))
        short = [row for row in self.rows if row.length <= _TOKENS_COMPARED] or self.rows[:1]
        seen = list(self._observed(short[:: max(1, len(short) // _ROWS_COMPARED)]))
        gains = {}
        for name, matrices in sharing.items():
            rows = [one[name].reshape(-1, one[name].shape[-1]) for one in seen]
            exact = [[row @ matrix for matrix in matrices] for row in rows]
            before = _losses(rows, matrices, exact)
            after = {
                alpha: _losses(rows, matrices, exact, scale_of(largest[name], matrices, alpha)) for alpha in ALPHAS
            }
            best = min(ALPHAS, key=lambda alpha: max(after[alpha]))  # the odd row decides, as it does at the gate
            gains[name] = (sum(before) - sum(after[best]), best)
        ordered = sorted(gains, key=lambda name: -gains[name][0])
        return [(name, gains[name][1]) for name in ordered if gains[name][0] > 0]

    def _maxima(self) -> Mapping[str, Array]:
        self._largest = self._largest or maxima(self._observed())
        return self._largest

    def _known_ranks(self) -> dict[str, int]:
        """Numbers of axes, by inference on the portable graph, whose names the quantizer keeps."""
        model = onnx.shape_inference.infer_shapes(onnx.load(self.portable, load_external_data=False))
        tensors = [*model.graph.value_info, *model.graph.input, *model.graph.output]
        return {
            one.name: len(one.type.tensor_type.shape.dim)
            for one in tensors
            if one.type.tensor_type.HasField("shape")
            # A side that is 1 would be spread over the other, which the fused kernel does not do.
            and all(axis.dim_param or axis.dim_value > 1 for axis in one.type.tensor_type.shape.dim)
        }

    def suffering(self, step: Step, method: str = "") -> list[str]:
        """Names of the nodes that multiply by a weight matrix, the one whose product loses most by int8 first.

        As the portable graph has them: whatever `step` smooths.
        """
        model = onnx.load(self.portable)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        nodes = products(model)
        lost = {node.name: 0.0 for node in nodes}
        matrices = {node.name: numpy_helper.to_array(weights[node.input[1]]) for node in nodes}
        for seen in self._observed():
            for node in nodes:
                lost[node.name] += _loss(seen[node.input[0]], matrices[node.name])
        return sorted(lost, key=lambda name: -lost[name])

    def _observed(self, rows: Sequence[Row] | None = None) -> Iterator[Mapping[str, Array]]:
        """What goes into the products with weight matrices, tensor by tensor, for each row."""
        model = onnx.load(self.portable, load_external_data=False)
        names = sorted({node.input[0] for node in products(model)})
        return observed(self.portable, names, self.rows if rows is None else rows)


def _losses(
    rows: Sequence[Array], matrices: Sequence[Array], exact: Sequence[Sequence[Array]], scale: Array | None = None
) -> list[float]:
    """How much all products of each row lose together."""
    if scale is not None:
        rows, matrices = [row / scale for row in rows], [matrix * scale[:, None] for matrix in matrices]
    return [
        sum(_loss(row, matrix, product) for matrix, product in zip(matrices, of_row, strict=True))
        for row, of_row in zip(rows, exact, strict=True)
    ]


def _loss(values: Array, matrix: Array, exact: Array | None = None) -> float:
    """How much of `values` @ `matrix` int8 loses: the squared error relative to the squared product (`exact`)."""
    rows = values.reshape(-1, len(matrix))
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    scale = (high - low) / 255 or 1.0
    zero = np.round(-low / scale)
    bytes_ = (np.clip(np.round(rows / scale) + zero, 0, 255) - zero) * scale
    columns = np.abs(matrix).max(axis=0) / 127
    columns[columns == 0] = 1.0
    exact = rows @ matrix if exact is None else exact
    return float(
        np.square(bytes_ @ (np.round(matrix / columns) * columns) - exact).sum() / (np.square(exact).sum() or 1)
    )
