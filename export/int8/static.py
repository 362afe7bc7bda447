"""int8 with scales that are known beforehand: products of bytes as QuantizeLinear and DequantizeLinear in the graph.

Products are MatMul and Conv with weights. Activations have one range a tensor, weights a scale for each output channel.
What it is for makes three forms of it:

tensorrt   bytes have a sign and no zero point, and weights stay fp32 in front of their QuantizeLinear, TensorRT's
           explicit quantization
           (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html).
           Weights whose input is not smoothed are read from those of the fp32 graph.
compared   the same numbers, with weights rounded here and not in every run
cpu        bytes of activations without a sign, weights as bytes; what a Conv makes is bytes as well, and so is what a
           sum or a pooling makes of bytes, for which ONNX Runtime has kernels
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from engine.tensors import Array
from export.int8.calibrate import Ranges
from export.int8.smooth import products
from export.nodes import drop_unread_constants, readers_of, replace_all

TENSORRT, COMPARED, CPU = "tensorrt", "compared", "cpu"

_LARGEST = 127  # of a byte with a sign
_BYTES = 255  # steps of one without
_BEHIND_CONV = ("Relu", "Clip")
"""Operators that become part of the kernel of the Conv before them."""
_OF_BYTES = ("Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool")
"""Operators that have a kernel on bytes. They read bytes where all of their inputs are bytes anyway."""


def quantizable(model: Any) -> list[Any]:
    """The nodes that multiply by weights: MatMul with a matrix, Conv."""
    kernels = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 2}
    convs = [node for node in model.graph.node if node.op_type == "Conv" and node.input[1] in kernels]
    return [*products(model), *convs]


def activations(model: Any, form: str, kept: Collection[str] = ()) -> list[str]:
    """Tensors that become bytes, in the order of the alphabet."""
    chosen = [node for node in quantizable(model) if node.name not in kept]
    made = set(_made_by_convs(model, chosen)) if form == CPU else set()
    return sorted({node.input[0] for node in chosen} | made)


def quantize(model: Any, found: Ranges, kept: Collection[str], form: str) -> None:
    """Put pairs of QuantizeLinear and DequantizeLinear around the products of `model`, in place.

    Nodes of the names `kept` stay as they are. The weights of `model` must be in memory.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:  # tensors of equal content, such as a bias of zeros, are one behind several of these
        if node.op_type == "Identity" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    chosen = {node.output[0]: node for node in quantizable(model) if node.name not in kept}
    names = activations(model, form, kept)
    made = set(_made_by_convs(model, chosen.values())) if form == CPU else set()
    pairs = {name: pair_of(graph, name, *found[name], form) for name in names}
    given = {tensor.name for tensor in graph.input}
    nodes: list[Any] = [one for name in names if name in given for one in pairs[name]]
    for node in list(graph.node):
        is_product = node.output[0] in chosen
        if is_product:
            nodes += _weights_of(graph, node, weights, _scale(*found[node.input[0]], form), form)
        reads_bytes = form == CPU and node.op_type in _OF_BYTES and pairs.keys() >= set(node.input)
        for place, name in enumerate(node.input):
            if name in made or (name in pairs and (reads_bytes or (is_product and place == 0))):
                node.input[place] = f"{name}/dequantized"
        nodes.append(node)
        for name in node.output:
            nodes += pairs.get(name, ())
    replace_all(graph.node, nodes)
    drop_unread_constants(graph)


def rounded_weights(node: Any, values: Array) -> Array:
    """What bytes leave of the weights of `node`."""
    axis = _channels(node)
    scale = _column_scales(values, axis).reshape([-1 if place == axis else 1 for place in range(values.ndim)])
    rounded: Array = (np.round(values / scale) * scale).astype(np.float32)
    return rounded


def _made_by_convs(model: Any, chosen: Iterable[Any]) -> Iterator[str]:
    """What each Conv makes, behind the activation that is part of its kernel; whoever reads it reads bytes."""
    readers = readers_of(model.graph)
    outputs = {tensor.name for tensor in model.graph.output}
    for node in chosen:
        if node.op_type != "Conv":
            continue
        made = node.output[0]
        behind = readers[made]
        if len(behind) == 1 and behind[0].op_type in _BEHIND_CONV and made not in outputs:
            made = behind[0].output[0]
        if made not in outputs:
            yield made


def _scale(low: float, high: float, form: str) -> float:
    return ((high - low) / _BYTES if form == CPU else max(-low, high) / _LARGEST) or 1.0


def pair_of(graph: Any, name: str, low: float, high: float, form: str) -> list[Any]:
    """The nodes that make bytes of the tensor `name`, and what they stand for; their scale is added to `graph`."""
    scale = _scale(low, high, form)
    zero = np.array(round(-low / scale), np.uint8) if form == CPU else np.array(0, np.int8)
    graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), f"{name}/scale"))
    graph.initializer.append(numpy_helper.from_array(zero, f"{name}/zero"))
    return _pair(name, name)


def _weights_of(graph: Any, node: Any, weights: Mapping[str, Any], scale: float, form: str) -> list[Any]:
    """Make `node` read bytes, or what they leave; the nodes for it. `scale` is that of its activations."""
    source, prefix, axis = node.input[1], f"{node.name or node.output[0]}/weight", _channels(node)
    values = numpy_helper.to_array(weights[source])
    if form == COMPARED:
        node.input[1] = f"{prefix}/rounded"
        graph.initializer.append(numpy_helper.from_array(rounded_weights(node, values), node.input[1]))
        return []
    columns = _column_scales(values, axis)
    graph.initializer.append(numpy_helper.from_array(columns, f"{prefix}/scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(len(columns), np.int8), f"{prefix}/zero"))
    node.input[1] = f"{prefix}/dequantized"
    if form == TENSORRT:
        return _pair(source, prefix, axis=axis)
    spread = columns.reshape([-1 if place == axis else 1 for place in range(values.ndim)])
    graph.initializer.append(numpy_helper.from_array(np.round(values / spread).astype(np.int8), f"{prefix}/quantized"))
    nodes = _pair(source, prefix, axis=axis)[1:]
    if node.op_type == "Conv" and len(node.input) > 2 and node.input[2] in weights:
        nodes.append(_bias(graph, node, numpy_helper.to_array(weights[node.input[2]]), columns * np.float32(scale)))
    return nodes


def _bias(graph: Any, node: Any, values: Array, scales: Array) -> Any:
    """The bias of a Conv in the scales of its sums, as its kernel on bytes takes it."""
    prefix = f"{node.name or node.output[0]}/bias"
    limit = np.iinfo(np.int32).max
    whole = np.clip(np.round(values.astype(np.float64) / scales), -limit, limit).astype(np.int32)
    graph.initializer.append(numpy_helper.from_array(whole, f"{prefix}/quantized"))
    graph.initializer.append(numpy_helper.from_array(scales.astype(np.float32), f"{prefix}/scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(len(scales), np.int32), f"{prefix}/zero"))
    node.input[2] = f"{prefix}/dequantized"
    return _pair("", prefix, axis=0)[1]


def _channels(node: Any) -> int:
    """Which axis of the weights is that of output channels."""
    return 0 if node.op_type == "Conv" else 1


def _column_scales(values: Array, axis: int) -> Array:
    others = tuple(place for place in range(values.ndim) if place != axis)
    scales: Array = (np.abs(values).max(axis=others) / _LARGEST).astype(np.float32)
    scales[scales == 0] = 1.0
    return scales


def _pair(source: str, prefix: str, **axis: int) -> list[Any]:
    scale = [f"{prefix}/scale", f"{prefix}/zero"]
    quantized, dequantized = f"{prefix}/quantized", f"{prefix}/dequantized"
    return [
        helper.make_node("QuantizeLinear", [source, *scale], [quantized], quantized, **axis),
        helper.make_node("DequantizeLinear", [quantized, *scale], [dequantized], dequantized, **axis),
    ]
