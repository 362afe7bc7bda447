"""int8 with scales that are known beforehand: products of bytes as QuantizeLinear and DequantizeLinear in the graph.

Activations have one range a tensor, calibrated on rows; weight matrices a scale a column. For TensorRT bytes have a
sign and no zero point, and weights stay fp32 in front of their QuantizeLinear, a form that all its versions read
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html).
The file of such a graph brings no weights: it reads those of the fp32 graph. For ONNX Runtime on a CPU activations are
bytes without a sign and with a zero point, for which it has the faster products.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from engine.tensors import Array
from export.smooth import products

METHODS = ("entropy", "percentile")
"""How a range is found in what was observed: that which loses least information, or that of all but a few values."""

_PERCENTILE = 99.999
_BINS = {"entropy": 128, "percentile": 2048}
_LEVELS = 128  # of a byte with a sign, on one side

Ranges = Mapping[str, tuple[float, float]]
"""Tensor -> the lowest and the highest value that its bytes stand for."""


def ranges(observed: Iterable[Mapping[str, Array]], method: str, *, symmetric: bool) -> Ranges:
    """Calibrate every tensor in `observed` by `method`, one of METHODS; onnxruntime.quantization does it."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(method, symmetric, _BINS[method], _LEVELS, _PERCENTILE, "same")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        for tensors in observed:
            collector.collect(tensors)
        found = collector.compute_collection_result()
    return {name: (float(low), float(high)) for name, (low, high, *_) in found.items()}


def quantize(model: Any, found: Ranges, kept: Collection[str], *, symmetric: bool) -> None:
    """Put pairs of QuantizeLinear and DequantizeLinear in front of products with weight matrices, in place.

    Nodes of the names `kept` stay as they are. The weights of `model` must be in memory. `symmetric`: TensorRT's form.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    chosen = {node.output[0] for node in products(model) if node.name not in kept}
    done: set[str] = set()
    nodes: list[Any] = []
    for node in list(graph.node):
        if node.output[0] in chosen:
            name, weight = node.input
            if name not in done:  # products that share an input share its bytes
                done.add(name)
                graph.initializer.extend(_range(name, *found[name], symmetric))
                nodes += _pair(name, name)
            prefix = f"{node.name or node.output[0]}/weight"
            nodes += _weight(graph, prefix, weights[weight], in_fp32=symmetric)
            node.input[:] = [f"{name}/dequantized", f"{prefix}/dequantized"]
        nodes.append(node)
    read = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)


def _range(name: str, low: float, high: float, symmetric: bool) -> list[Any]:
    if symmetric:
        scale, zero = max(-low, high) / 127 or 1.0, np.array(0, np.int8)
    else:
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / 255 or 1.0
        zero = np.array(round(-low / scale), np.uint8)
    return [
        numpy_helper.from_array(np.array(scale, np.float32), f"{name}/scale"),
        numpy_helper.from_array(zero, f"{name}/zero"),
    ]


def _weight(graph: Any, prefix: str, tensor: Any, *, in_fp32: bool) -> list[Any]:
    values = numpy_helper.to_array(tensor)
    scale = np.abs(values).max(axis=0) / 127
    scale[scale == 0] = 1.0
    graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{prefix}/scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(len(scale), np.int8), f"{prefix}/zero"))
    if in_fp32:
        return _pair(tensor.name, prefix, axis=1)
    graph.initializer.append(numpy_helper.from_array(np.round(values / scale).astype(np.int8), f"{prefix}/quantized"))
    return _pair(tensor.name, prefix, axis=1)[1:]


def _pair(source: str, prefix: str, **axis: int) -> list[Any]:
    scale = [f"{prefix}/scale", f"{prefix}/zero"]
    quantized, dequantized = f"{prefix}/quantized", f"{prefix}/dequantized"
    return [
        helper.make_node("QuantizeLinear", [source, *scale], [quantized], quantized, **axis),
        helper.make_node("DequantizeLinear", [quantized, *scale], [dequantized], dequantized, **axis),
    ]
