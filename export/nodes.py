"""Writing ONNX graphs: named nodes, constants, inputs and outputs. What a task puts in front of a model and behind it.

Names of axes are "batch" and "length", and whole numbers for what is fixed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from onnx import helper, numpy_helper

from export.errors import Refused

Axes: TypeAlias = "Sequence[int | str]"


class Nodes:
    """Appends nodes and constants to a graph, all of them named below `prefix`."""

    def __init__(self, graph: Any, prefix: str) -> None:
        self.graph = graph
        self._prefix = prefix

    def add(self, kind: str, name: str, *inputs: str, output: str = "", outputs: int = 1, **attributes: Any) -> str:
        """Append a node and return the name of its output, of the first one where it has several (`outputs`)."""
        full_name = f"{self._prefix}/{name}"
        first = output or full_name
        names = [first, *(f"{full_name}/{number}" for number in range(1, outputs))]
        self.graph.node.append(helper.make_node(kind, inputs, names, name=full_name, **attributes))
        return first

    def constant(self, name: str, values: Any, dtype: type) -> str:
        """Append a constant and return its name."""
        full_name = f"{self._prefix}/{name}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), full_name))
        return full_name

    def input(self, name: str, dtype: str, axes: Axes) -> str:
        """Declare an input of the graph and return its name; `dtype` is numpy's."""
        self.graph.input.append(value_info(name, dtype, axes))
        return name


class NoDtype(ValueError):
    """A tensor is declared as what none can be."""


def value_info(name: str, dtype: str, axes: Axes) -> Any:
    """What a graph declares about a tensor. Raises NoDtype."""
    try:
        if (made := np.dtype(dtype)).isbuiltin > 1:
            raise TypeError("of ml_dtypes, which onnx imports and a worker does not have")
        kind = helper.np_dtype_to_tensor_dtype(made)
    except (KeyError, TypeError, ValueError):
        raise NoDtype(f"{name} is declared as {dtype!r}, which is no dtype of numpy's that ONNX has") from None
    return helper.make_tensor_value_info(name, kind, list(axes))


def find_output(graph: Any, name: str) -> Any | None:
    """The declaration of an output, or None."""
    return next((tensor for tensor in graph.output if tensor.name == name), None)


def require_output(graph: Any, name: str, tag: str) -> Any:
    """The declaration of an output that the task `tag` is made of. Raises Refused."""
    found = find_output(graph, name)
    if found is None:
        names = ", ".join(tensor.name for tensor in graph.output)
        raise Refused(f"the model's graph has no {name}, which {tag} needs, only {names}; choose another --task")
    return found


def set_outputs(graph: Any, outputs: Iterable[tuple[str, str, Axes]]) -> None:
    """Make tensors of the graph its only outputs: (name, dtype, axes) each."""
    replace_all(graph.output, [value_info(*output) for output in outputs])


def rename_inputs(graph: Any, new_names: Mapping[str, str]) -> None:
    """Rename what nodes read, in nested graphs as well."""
    for node in graph.node:
        rename_read(node, new_names)


def rename_read(node: Any, new_names: Mapping[str, str]) -> None:
    """Rename what one node reads, in its nested graphs as well."""
    node.input[:] = [new_names.get(name, name) for name in node.input]
    for nested in subgraphs(node):
        rename_inputs(nested, new_names)


def drop_unused(graph: Any) -> None:
    """Drop what no output needs: the pooler, whose weights may even be missing, and inputs that nothing reads."""
    needed = {tensor.name for tensor in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= names_read(node)
    replace_all(graph.node, reversed(kept))
    replace_all(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])
    replace_all(graph.input, [tensor for tensor in graph.input if tensor.name in needed])


def drop_unread_constants(graph: Any) -> None:
    """Drop the initializers that neither a node nor the graph's caller reads."""
    read = {tensor.name for tensor in graph.output}.union(*(names_read(node) for node in graph.node))
    replace_all(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read])


def keep_padding(graph: Any) -> None:
    """Keep ONNX Runtime from merging zeros that are padded into the pool behind, which pads with the lowest number.

    So does 1.18 where the pool says that it pads nothing itself, in BiT for one; to say nothing means the same.
    """
    padded = {node.output[0] for node in graph.node if node.op_type == "Pad"}
    for node in graph.node:
        if node.op_type == "MaxPool" and node.input[0] in padded:
            replace_all(node.attribute, [one for one in node.attribute if one.name != "pads" or any(one.ints)])


def complete_norms(graph: Any) -> None:
    """Give layer normalisations without a bias one of zeros: ONNX Runtime 1.18 looks for one, and ends the process."""
    sizes = {tensor.name: tensor.dims for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "LayerNormalization" and len(node.input) == 2 and node.input[1] in sizes:
            scale, bias = node.input[1], f"{node.input[1]}/bias"
            if bias not in sizes:
                sizes[bias] = sizes[scale]
                graph.initializer.append(numpy_helper.from_array(np.zeros(tuple(sizes[scale]), np.float32), bias))
            node.input.append(bias)


def sort_nodes(graph: Any) -> None:
    """Put every node behind those that it reads from, otherwise in the order in which they stand."""
    made_here = {name for node in graph.node for name in node.output}
    done: set[str] = set()
    ordered, waiting = [], list(graph.node)
    while waiting:
        left = []
        for node in waiting:
            if (names_read(node) & made_here) <= done:
                ordered.append(node)
                done.update(node.output)
            else:
                left.append(node)
        assert len(left) < len(waiting), "the graph has a cycle"
        waiting = left
    replace_all(graph.node, ordered)


def replace_all(field: Any, items: Iterable[Any]) -> None:
    """Make `items` all that a repeated field of ONNX's, such as `graph.node`, holds."""
    kept = list(items)
    del field[:]
    field.extend(kept)


def names_read(node: Any) -> set[str]:
    """What `node` reads, inside its nested graphs as well; an input that is left out has no name."""
    nested = (inner for graph in subgraphs(node) for inner in graph.node)
    return set(node.input).union(*(names_read(inner) for inner in nested)) - {""}


def readers_of(graph: Any) -> dict[str, list[Any]]:
    """Tensor -> the nodes that read it, in their order; none for a tensor that no node reads."""
    readers: dict[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        for name in names_read(node):
            readers[name].append(node)
    return readers


def attribute_of(node: Any, name: str, default: Any) -> Any:
    """The value of an attribute, a list for one that holds several; `default` where it is left out."""
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def subgraphs(node: Any) -> list[Any]:
    """The nested graphs of `node`: bodies of loops, branches of conditions."""
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]
