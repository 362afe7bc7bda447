"""Stage 2: trace the model through optimum's exporter, and make the graph what our engines expect.

Inputs int32, axes named batch and length, pooling inside, one output. TensorRT 8.6 has no int64, and int32 halves the
copy; inside the graph the values are cast back, because the model's own nodes mix them with int64 shapes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.errors import Refused
from export.pooling import Nodes, append_pooling
from export.source import Source, quiet

OPSET = 17
"""The newest that TensorRT 8.6's parser takes."""

IR_VERSION = 8
"""What belongs to opset 17."""

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_HIDDEN_STATES = "last_hidden_state"


def onnx_from_model(source: Source, folder: Path) -> Any:
    """Trace `source` and return the portable graph as an ONNX model; `folder` holds the exporter's files meanwhile.

    Raises Refused when the traced graph is not one from tokens to a vector a token.
    """
    traced = onnx.load(_trace(source, folder))
    shutil.rmtree(folder)  # as large as the weights
    graph = traced.graph
    hidden = next((tensor for tensor in graph.output if tensor.name == _HIDDEN_STATES), None)
    if hidden is None:
        raise Refused(f"the model's graph has no {_HIDDEN_STATES}, the token vectors that {source.task} pools")
    _own_inputs(graph)
    dimension = hidden.type.tensor_type.shape.dim[-1].dim_value or source.config.hidden_size
    append_pooling(graph, source.pooling, _HIDDEN_STATES, "attention_mask", dimension)
    _drop_unused(graph)
    # Shapes that the exporter noted on the way carry its own names of axes; every runtime infers them again.
    del graph.value_info[:]
    traced.ir_version = IR_VERSION
    return traced


def _trace(source: Source, folder: Path) -> Path:
    """Run the exporter; `main_export` would do the same, but load weights that are missing as random numbers."""
    from optimum.exporters.onnx import onnx_export_from_model

    model = source.load_model()
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # a decoder would return its cache, one output a layer
    with quiet():
        onnx_export_from_model(model, folder, opset=OPSET, task=source.task, do_validation=False)
    return folder / "model.onnx"


def _own_inputs(graph: Any) -> None:
    """Replace the exporter's int64 inputs by int32 ones of the same names, cast behind the input."""
    names = [tensor.name for tensor in graph.input]
    foreign = [name for name in names if name not in (*_INPUTS, "position_ids")]
    if foreign or not {"input_ids", "attention_mask"} <= set(names):
        raise Refused(f"the model's graph reads {', '.join(names)}; the worker feeds {', '.join(_INPUTS)}")
    _rename(graph, {name: f"inputs/{name}" for name in names})
    traced_nodes = list(graph.node)
    del graph.node[:], graph.input[:]
    nodes = Nodes(graph, "inputs")
    for name in names:
        if name == "position_ids":
            _count_positions(nodes)
        else:
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "length"]))
            nodes.add("Cast", name, name, to=TensorProto.INT64)
    graph.node.extend(traced_nodes)


def _rename(graph: Any, new_names: Mapping[str, str]) -> None:
    """Rename what nodes read, in nested graphs as well."""
    for node in graph.node:
        node.input[:] = [new_names.get(name, name) for name in node.input]
        for nested in _subgraphs(node):
            _rename(nested, new_names)


def _count_positions(nodes: Nodes) -> None:
    """0, 1, 2 ... in every row: what decoders count themselves when nobody passes positions."""
    shape = nodes.add("Shape", "shape", "input_ids")
    length = nodes.add("Gather", "length", shape, nodes.constant("length_axis", 1, np.int64), axis=0)
    zero, one = nodes.constant("zero", 0, np.int64), nodes.constant("one", 1, np.int64)
    row = nodes.add("Range", "row", zero, length, one)
    nodes.add("Expand", "position_ids", row, shape)


def _drop_unused(graph: Any) -> None:
    """Drop what no output needs: the pooler, whose weights may even be missing, and inputs that nothing reads."""
    needed = {tensor.name for tensor in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= _names_read(node)
    _replace(graph.node, reversed(kept))
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])
    _replace(graph.input, [tensor for tensor in graph.input if tensor.name in needed])


def _replace(field: Any, items: Iterable[Any]) -> None:
    kept = list(items)
    del field[:]
    field.extend(kept)


def _names_read(node: Any) -> set[str]:
    nested = (inner for graph in _subgraphs(node) for inner in graph.node)
    return set(node.input).union(*(_names_read(inner) for inner in nested))


def _subgraphs(node: Any) -> list[Any]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]
