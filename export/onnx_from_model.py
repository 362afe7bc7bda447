"""Stage 2: trace the model, and make the graph what our engines expect.

Inputs as the task declares them, axes named batch and length, what the task puts behind the model inside. Integers are
int32: TensorRT 8.6 has no int64, and int32 halves the copy; inside the graph the values are cast back, because the
model's own nodes mix them with int64 shapes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.errors import Refused
from export.nodes import Nodes, drop_unused, keep_padding, rename_inputs
from export.own_task import add_head
from export.source import Source
from export.tracing.lean_trace import release
from export.tracing.opset import IR_VERSION


def onnx_from_model(source: Source, folder: Path, name: str = "model") -> Any:
    """Trace `source` and return its portable graph `name` as an ONNX model.

    `folder` holds the exporter's files meanwhile. Raises Refused when the traced graph is not what the task is made of.
    """
    path = source.task.trace_graph(source, folder, name)
    release(source.weights_bytes)  # the model in torch is as large as what comes now
    traced = onnx.load(path)
    shutil.rmtree(folder)  # as large as the weights
    graph = traced.graph
    if not source.task.traces_itself:
        _own_inputs(graph, source)
        add_head(traced, source)
    keep_padding(graph)
    drop_unused(graph)
    # Shapes that the exporter noted on the way carry its own names of axes; every runtime infers them again.
    del graph.value_info[:]
    traced.ir_version = IR_VERSION
    return traced


def _own_inputs(graph: Any, source: Source) -> None:
    """Replace the exporter's inputs by the task's, of the same names, and put the nodes in front that adapt them."""
    ours = source.task.input_axes()
    traced = {tensor.name: tensor.type.tensor_type.elem_type for tensor in graph.input}
    foreign = [name for name in traced if name not in ours and name != "position_ids"]
    if foreign or not traced:
        raise Refused(f"the model's graph reads {', '.join(traced)}; the worker feeds {', '.join(ours)}")
    rename_inputs(graph, {name: f"inputs/{name}" for name in traced})
    traced_nodes = list(graph.node)
    del graph.node[:], graph.input[:]
    nodes = Nodes(graph, "inputs")
    for name, dtype in traced.items():
        if name in ours:
            source.task.adapt(nodes, nodes.input(name, *ours[name]), dtype, source)
        else:
            _count_positions(nodes)
    graph.node.extend(traced_nodes)


def _count_positions(nodes: Nodes) -> None:
    """0, 1, 2 ... in every row: what decoders count themselves when nobody passes positions."""
    shape = nodes.add("Shape", "shape", "input_ids")
    length = nodes.add("Gather", "length", shape, nodes.constant("length_axis", 1, np.int64), axis=0)
    zero, one = nodes.constant("zero", 0, np.int64), nodes.constant("one", 1, np.int64)
    row = nodes.add("Range", "row", zero, length, one)
    nodes.add("Expand", "position_ids", row, shape)
