"""int8 with scales that are known beforehand: products of bytes as QuantizeLinear and DequantizeLinear in the graph.

Activations have one range a tensor, calibrated on rows; weight matrices a scale a column. It is the form of TensorRT's
explicit quantization: bytes have a sign and no zero point, and weights stay fp32 in front of their QuantizeLinear
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html).
Weights whose input is not smoothed are read from those of the fp32 graph.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from engine.tensors import Array
from export.smooth import maxima, products

METHODS = ("entropy", "percentile")
"""How a range is found in what was observed: that which loses least information, or that of all but a few values."""

_PERCENTILE = 99.999
_BINS = {"entropy": 512, "percentile": 2048}
_LEVELS = 128  # of a byte with a sign, on one side
_LARGEST = 127

Ranges = Mapping[str, float]
"""Tensor -> the largest magnitude that its bytes stand for."""


def ranges(observe: Callable[[], Iterable[Mapping[str, Array]]], method: str) -> Ranges:
    """Calibrate every tensor that `observe` gives, by `method`, one of METHODS; onnxruntime.quantization does it.

    `observe` is called twice. The collector's bins are as wide as what comes first makes them, and it adds bins for all
    that is larger; entropy's search takes the square of their number. So the largest values come first.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(method, True, _BINS[method], _LEVELS, _PERCENTILE, "same")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        for name, channels in maxima(observe()).items():
            largest = np.float32(channels.max())
            collector.collect({name: np.array([-largest, largest])})
        for tensors in observe():
            collector.collect(tensors)
        found = collector.compute_collection_result()
    return {name: max(-float(low), float(high)) for name, (low, high, *_) in found.items()}


def quantize(model: Any, found: Ranges, kept: Collection[str]) -> None:
    """Put pairs of QuantizeLinear and DequantizeLinear in front of products with weight matrices, in place.

    Nodes of the names `kept` stay as they are. The weights of `model` must be in memory.
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
                graph.initializer.extend(_range(name, found[name]))
                nodes += _pair(name, name)
            prefix = f"{node.name or node.output[0]}/weight"
            graph.initializer.extend(_weight_scales(prefix, numpy_helper.to_array(weights[weight])))
            nodes += _pair(weight, prefix, axis=1)
            node.input[:] = [f"{name}/dequantized", f"{prefix}/dequantized"]
        nodes.append(node)
    read = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)


def _range(name: str, largest: float) -> list[Any]:
    return [
        numpy_helper.from_array(np.array(largest / _LARGEST or 1.0, np.float32), f"{name}/scale"),
        numpy_helper.from_array(np.array(0, np.int8), f"{name}/zero"),
    ]


def _weight_scales(prefix: str, values: Array) -> list[Any]:
    scale = np.abs(values).max(axis=0) / _LARGEST
    scale[scale == 0] = 1.0
    return [
        numpy_helper.from_array(scale.astype(np.float32), f"{prefix}/scale"),
        numpy_helper.from_array(np.zeros(len(scale), np.int8), f"{prefix}/zero"),
    ]


def _pair(source: str, prefix: str, **axis: int) -> list[Any]:
    scale = [f"{prefix}/scale", f"{prefix}/zero"]
    quantized, dequantized = f"{prefix}/quantized", f"{prefix}/dequantized"
    return [
        helper.make_node("QuantizeLinear", [source, *scale], [quantized], quantized, **axis),
        helper.make_node("DequantizeLinear", [quantized, *scale], [dequantized], dequantized, **axis),
    ]
