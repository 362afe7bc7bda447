"""Stage 6, for int8: weights as bytes, found by trying from the fastest down, each step through the gate.

Dynamic quantization for the CPU: weight matrices are int8 with a scale a column, activations are scaled a tensor when
they are known. Embedding tables and everything else stay fp32. The portable fp32 graph stays in the bundle, for a GPU.

The steps: every weight matrix; the same, smoothed (smooth.py); the same, with some matrices left in fp32. Which ones is
measured, not guessed: first come those whose own products suffer most, and of these the ones without which the model's
answer comes nearest to fp32.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from engine.tensors import Array, Row
from export.errors import ParityFailed
from export.optimize import Places, add_graph, fuse
from export.smooth import maxima, products, smooth

SHORTLIST = 12
"""Matrices that are tried one by one. On all-MiniLM-L6-v2 the four that matter most are among the ten whose products
suffer most; trying each costs a quantization and ROWS_TRIED rows."""

ROWS_TRIED = 100
_ROWS_OBSERVED = 60

Figures: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One rung of the ladder: how smooth, and which nodes' matrices stay fp32."""

    alpha: float | None = None
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        matrices = "matrix" if len(self.kept) == 1 else "matrices"
        which = f"all but {len(self.kept)} weight {matrices}" if self.kept else "every weight matrix"
        return which if self.alpha is None else f"{which}, smoothed by {self.alpha}"


class Int8:
    """Makes int8 graphs of the portable graph at `portable`, beside it.

    `work` is a folder that comes and goes; `rows` are what activations are observed on.
    """

    def __init__(self, portable: Path, work: Path, places: Places, rows: Sequence[Row]) -> None:
        self._portable = portable
        self._work = work
        self._places = places
        self._rows = rows[:_ROWS_OBSERVED]
        self._largest: Mapping[str, Array] | None = None

    def write(self, step: Step) -> Path:
        """Write the graph of `step`; it replaces the one before."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        whole, quantized = self._work / "whole.onnx", self._work / "quantized.onnx"
        model = onnx.load(self._portable)
        if step.alpha is not None:
            self._largest = self._largest or maxima(self._observed())
            smooth(model, self._largest, step.alpha)
        onnx.save(model, whole, save_as_external_data=True, location="whole.bin")
        with _quiet():
            quantize_dynamic(
                whole,
                quantized,
                per_channel=True,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul"],
                nodes_to_exclude=list(step.kept),
                use_external_data_format=True,
                extra_options={"MatMulConstBOnly": True},  # products of two activations have nothing to gain
            )
        path = self._portable.with_name("int8.cpu.onnx")
        add_graph(onnx.load(fuse(quantized, self._work / "fused")), path, self._places)
        shutil.rmtree(self._work)
        return path

    def suffering(self) -> list[str]:
        """Names of the nodes that multiply by a weight matrix, the one whose product loses most by int8 first."""
        model = onnx.load(self._portable)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        nodes = products(model)
        lost = {node.name: 0.0 for node in nodes}
        matrices = {node.name: numpy_helper.to_array(weights[node.input[1]]) for node in nodes}
        for seen in self._observed():
            for node in nodes:
                lost[node.name] += _loss(seen[node.input[0]], matrices[node.name])
        return sorted(lost, key=lambda name: -lost[name])

    def _observed(self) -> Iterator[Mapping[str, Array]]:
        """What goes into the products with weight matrices, tensor by tensor, for each row."""
        model = onnx.load(self._portable, load_external_data=False)
        names = sorted({node.input[0] for node in products(model)})
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
        # Beside the portable graph, where the weights are.
        observed = self._portable.with_name("observed.onnx")
        try:
            onnx.save(model, observed)
            options = ort.SessionOptions()
            options.log_severity_level = 3
            session = ort.InferenceSession(str(observed), options, providers=["CPUExecutionProvider"])
        finally:
            observed.unlink(missing_ok=True)
        inputs = [tensor.name for tensor in session.get_inputs()]
        for row in self._rows:
            yield dict(zip(names, session.run(names, {name: row.feeds[name][None] for name in inputs}), strict=True))


def search(
    attempt: Callable[[Step], Figures], best_alpha: Callable[[], float], ranked: Callable[[float], Sequence[str]]
) -> tuple[Figures, Step, dict[str, str]]:
    """The fastest step that passes the gate: its figures, and why the ones that were tried beside it were refused.

    `attempt` writes a step's graph and returns the gate's figures. Asked only when needed: `best_alpha` for how much
    to smooth, `ranked` for the names of all weight matrices' nodes, those to keep in fp32 first. Raises ParityFailed
    when half of all kept are not enough: too little would be gained.
    """
    refused: dict[str, str] = {}
    last: list[ParityFailed] = []
    written = Step()

    def passes(step: Step) -> Figures | None:
        nonlocal written
        written = step
        try:
            return attempt(step)
        except ParityFailed as failure:
            refused[str(step)] = f"{failure}; worst: {', '.join(failure.rows[0])}"
            last.append(failure)
            return None

    if (figures := passes(Step())) is not None:
        return figures, Step(), refused
    smoothed = Step(best_alpha())
    if (figures := passes(smoothed)) is not None:
        return figures, smoothed, refused
    assert smoothed.alpha is not None
    names = tuple(ranked(smoothed.alpha))
    too_few, count = 0, 1
    while (figures := passes(replace(smoothed, kept=names[:count]))) is None:
        if 2 * count > len(names) // 2:
            raise last[-1]
        too_few, count = count, 2 * count
    while count - too_few > 1:  # fewer may do
        middle = (too_few + count) // 2
        if (found := passes(replace(smoothed, kept=names[:middle]))) is None:
            too_few = middle
        else:
            count, figures = middle, found
    step = replace(smoothed, kept=names[:count])
    return figures if written == step else attempt(step), step, refused


def _loss(values: Array, matrix: Array) -> float:
    """How much of `values` @ `matrix` int8 loses: the squared error relative to the squared product."""
    rows = values.reshape(-1, len(matrix))
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    scale = (high - low) / 255 or 1.0
    zero = np.round(-low / scale)
    bytes_ = (np.clip(np.round(rows / scale) + zero, 0, 255) - zero) * scale
    columns = np.abs(matrix).max(axis=0) / 127
    columns[columns == 0] = 1.0
    exact = rows @ matrix
    return float(
        np.square(bytes_ @ (np.round(matrix / columns) * columns) - exact).sum() / (np.square(exact).sum() or 1)
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back advice to pre-process, which the fusing afterwards does, and warnings of onnx.mapping's end."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logging.disable(before)
