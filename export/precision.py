"""Stage 6, for int8: weights as bytes, found by trying from the fastest down, each step through the gate.

Dynamic quantization for the CPU: weight matrices are int8 with a scale a column, activations are scaled a tensor when
they are known. Embedding tables and everything else stay fp32. The portable fp32 graph stays in the bundle, for a GPU.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from export.optimize import Places, add_graph, fuse


@dataclass(frozen=True)
class Step:
    """One rung: a name for parity.json, and which weight matrices (inputs x outputs) stay fp32."""

    name: str
    keeps: Callable[[int, int], bool]


STEPS = (
    Step("every weight matrix", lambda inputs, outputs: False),
    # Their inputs have the widest range, and one scale a tensor has to cover it.
    Step("all but the feed-forward outputs", lambda inputs, outputs: inputs > outputs),
    Step("square matrices only", lambda inputs, outputs: inputs != outputs),
)


def int8(portable: Path, step: Step, work: Path, places: Places) -> Path:
    """Write the graph of `step` beside `portable` and return its path; a graph of an earlier step is replaced."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    work.mkdir(parents=True)
    whole, quantized = work / "whole.onnx", work / "quantized.onnx"
    model = onnx.load(portable)
    kept = _nodes(model, step)
    onnx.save(model, whole, save_as_external_data=True, location="whole.bin")
    with _quiet():
        quantize_dynamic(
            whole,
            quantized,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=kept,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True},  # products of two activations have nothing to gain
        )
    path = portable.with_name("int8.cpu.onnx")
    add_graph(onnx.load(fuse(quantized, work / "fused")), path, places)
    return path


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


def _nodes(model: Any, step: Step) -> list[str]:
    """Names of the MatMul nodes whose weights stay fp32."""
    shapes: Mapping[str, tuple[int, ...]] = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    products = [
        node for node in model.graph.node if node.op_type == "MatMul" and len(shapes.get(node.input[1], ())) == 2
    ]
    return [node.name for node in products if step.keeps(*shapes[node.input[1]])]
