"""What a graph in half precision comes to, computed on a CPU: fp32 arithmetic, and every half tensor rounded.

GPUs multiply fp16 and bf16 with sums in fp32 and round what leaves a kernel; so does this. ONNX Runtime on a CPU cannot
show it: it has few kernels of these types, computes fp16 in fp32, and leaves out the roundings in between, so that a
sum of 70,000, for which fp16 has no number, passes unseen (1.18.1); bf16 it cannot run at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.nodes import replace_all
from export.optimize import add_graph, load_whole

_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def rounded(half: Path, path: Path) -> Path:
    """Write the graph at `half` to `path` in fp32, with a rounding behind every node that gives half tensors.

    Tensors keep their names. Returns `path`.
    """
    types = _half_tensors(half)
    model = load_whole(half)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type in _HALF:
            tensor.CopyFrom(numpy_helper.from_array(_as_float(tensor), tensor.name))
    nodes: list[Any] = []
    for node in graph.node:
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name in types:
                node.output[place] = f"{name}/exact"
                nodes.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=types[name]))
                nodes.append(helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT))
        if node.op_type == "Cast" and node.attribute[0].i in _HALF:  # the rounding behind it makes the type
            node.attribute[0].i = TensorProto.FLOAT
    replace_all(graph.node, nodes)
    del graph.value_info[:]
    add_graph(model, path, {})
    return path


def _half_tensors(path: Path) -> dict[str, int]:
    """Element types of the half tensors that nodes make."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False), strict_mode=True).graph
    found = {one.name: one.type.tensor_type.elem_type for one in [*graph.value_info, *graph.output]}
    return {name: found[name] for node in graph.node for name in node.output if found.get(name) in _HALF}


def _as_float(tensor: Any) -> Any:
    if tensor.data_type == TensorProto.FLOAT16:
        return numpy_helper.to_array(tensor).astype(np.float32)
    bits = np.frombuffer(tensor.raw_data, np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32).reshape(tensor.dims)
