"""Attention in fewer steps and smaller numbers, and with the same answers: what half precision is made from.

1. A scale behind the product of queries and keys moves onto the queries. TensorRT's documentation asks for it: its
   fused kernel may sum that product in fp16, which without the scale ends sooner.
2. The bias of the keys goes: it adds the same to all scores of a query, which softmax takes away again.
3. The bias of the values moves into the bias behind the next product, since what softmax gives sums to one.
4. The bias of the queries moves behind the split into heads.

With 2 to 4 a builder may read keys and values where their product left them: TensorRT-RTX 1.7.1 saves two of ten
kernels a layer of BERT, 1.4.0 none. Whatever does not look exactly like this stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from engine.tensors import Array
from export.nodes import attribute_of, readers_of, rename_read, sort_nodes
from export.optimize import outside

_HEADS, _KEYS = (0, 2, 1, 3), (0, 2, 3, 1)
"""Axes of (batch, tokens, heads, head size) as queries and values have them, and as the keys do."""
_CHANGED = "/lean"
_MASKED = -10_000.0
_REST = -1
"""In a shape: what is left."""


def lean_attention(graph: Any, floats: Set[str], folder: Path) -> set[str]:
    """Rewrite `graph`, without Constant nodes, in place, and return the names of its new tensors, all fp32.

    `floats` are its fp32 tensors; casts of them to fp32 go. A tensor whose value changes has a new name. `folder` is
    where weights lie that are not in the graph.
    """
    rewriting = _Rewriting(graph, folder)
    for node in list(graph.node):
        if node.op_type == "Cast" and node.input[0] in floats and node.output[0] in floats:
            rewriting.drop(node)
    for node in list(graph.node):
        if node.op_type == "MatMul":
            rewriting.rewrite(node)
    sort_nodes(graph)
    return rewriting.made


@dataclass(frozen=True)
class _Split:
    """A product with a weight matrix, its bias, and the steps that make heads of it, the first one first."""

    add: Any
    bias: str
    product: str
    steps: Sequence[Any]
    heads: int
    size: int


class _Rewriting:
    def __init__(self, graph: Any, folder: Path) -> None:
        self.made: set[str] = set()
        self._graph = graph
        self._folder = folder
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers = readers_of(graph)
        for tensor in graph.output:
            self._readers[tensor.name].append(None)

    def drop(self, node: Any) -> None:
        """Take out `node`, which does nothing, unless the graph's caller reads it."""
        if None not in self._readers[node.output[0]]:
            self._cut(node, node.input[0])

    def rewrite(self, scores: Any) -> None:
        """Rewrite the attention that begins with the product `scores`, as far as `scores` is one and all fits."""
        if any(name in self._weights for name in scores.input) or scores.input[0] == scores.input[1]:
            return
        scales, between, softmax = self._to_softmax(scores)
        if softmax is None:
            return
        self._scale_queries(scores, scales)
        keys = self._split(scores.input[1], _KEYS)
        if keys is not None:
            self._cut(keys.add, keys.product)
            self._rename(*keys.steps, scores, *between)
        self._move_bias_of_values(softmax.output[0])
        self._move_bias_of_queries(scores.input[0])

    def _to_softmax(self, scores: Any) -> tuple[list[Any], list[Any], Any]:
        """Scales directly behind `scores`, what is added then, and the softmax over the last axis; None without one."""
        scales: list[Any] = []
        between: list[Any] = []
        node = self._only_reader(scores.output[0])
        while node is not None and self._factor(node) is not None:
            scales.append(node)
            node = self._only_reader(node.output[0])
        while node is not None and (node.op_type == "Add" or self._is_mask(node)):
            between.append(node)
            node = self._only_reader(node.output[0])
        found = node is not None and node.op_type == "Softmax" and attribute_of(node, "axis", -1) in (-1, 3)
        return scales, between, node if found else None

    def _scale_queries(self, scores: Any, scales: Sequence[Any]) -> None:
        if not scales:
            return
        factor = math.prod(self._factor(node) or 0.0 for node in scales)
        for node in scales:
            self._cut(node, scores.output[0])
        name = f"{scores.output[0]}/query"
        self._put("Mul", name, name, scores.input[0], np.array(factor, np.float32), scores)
        self._rename(scores)

    def _move_bias_of_values(self, chances: str) -> None:
        mixed = self._only_reader(chances)
        if mixed is None or mixed.op_type != "MatMul" or mixed.input[0] != chances:
            return
        values, joined = self._split(mixed.input[1], _HEADS), self._joined(mixed)
        if values is None or joined is None or any(self._factor(node) is not None for node in values.steps):
            return
        *steps, product, add = joined
        places = [index for index, name in enumerate(add.input) if name in self._weights]
        matrix = self._weights[product.input[1]]
        if len(places) != 1 or list(matrix.dims)[:1] != [values.heads * values.size]:
            return
        bias = self._weights[add.input[places[0]]]
        if list(bias.dims) != list(matrix.dims)[1:]:
            return
        moved = self._values(self._weights[values.bias]) @ self._values(matrix)
        add.input[places[0]] = self._constant(self._values(bias) + moved, f"{add.output[0]}/bias")
        self._cut(values.add, values.product)
        self._rename(*values.steps, mixed, *steps, product)

    def _joined(self, mixed: Any) -> list[Any] | None:
        """What follows `mixed`: heads side by side again, the product with a matrix, and the addition of its bias."""
        steps: list[Any] = []
        before = mixed
        for kind in ("Transpose", "Reshape", "MatMul", "Add"):
            node = self._only_reader(before.output[0])
            if node is None or node.op_type != kind:
                return None
            steps.append(node)
            before = node
        transpose, reshape, product, _ = steps
        if tuple(attribute_of(transpose, "perm", ())) != _HEADS or product.input[1] not in self._weights:
            return None
        width = self._weights[product.input[1]].dims[0]
        return steps if self._last_sizes(reshape.input[1], 3) in ((width,), (_REST,)) else None

    def _move_bias_of_queries(self, name: str) -> None:
        queries = self._split(name, _HEADS)
        if queries is None:
            return
        count = sum(node.op_type == "Transpose" for node in queries.steps)
        split = queries.steps[: count + 1]
        if any(node.op_type not in ("Reshape", "Transpose") for node in split):  # a scale stands between them
            return
        self._cut(queries.add, queries.product)
        name = split[-1].output[0]
        self._rename(*split)
        bias = self._values(self._weights[queries.bias]).reshape(queries.heads, 1, queries.size)
        reader = self._only_reader(split[-1].output[0])
        self._put("Add", queries.add.name, name, split[-1].output[0], bias, reader)

    def _split(self, name: str, axes: Sequence[int]) -> _Split | None:
        """How `name` was made, where it is a product with a bias, split into heads whose axes are then `axes`."""
        steps: list[Any] = []
        order: Sequence[int] = range(4)
        node = self._makers.get(name)
        while node is not None and self._is_read_once(node) and node.op_type != "Reshape":
            if node.op_type == "Transpose":
                perm = attribute_of(node, "perm", ())
                if len(perm) != 4:
                    return None
                order = [perm[axis] for axis in order]
            elif self._factor(node) is None:
                return None
            steps.insert(0, node)
            node = self._makers.get(next(one for one in node.input if one not in self._weights))
        if node is None or tuple(order) != axes or not self._is_read_once(node):
            return None
        biased, sizes = self._biased(node.input[0]), self._last_sizes(node.input[1], 4)
        if biased is None or sizes is None or sizes[1] <= 0:
            return None
        heads, left = divmod(self._weights[biased[1]].dims[0], sizes[1])
        return None if left or sizes[0] not in (heads, _REST) else _Split(*biased, [node, *steps], heads, sizes[1])

    def _biased(self, name: str) -> tuple[Any, str, str] | None:
        """The addition that makes `name`, its constant of one axis, and the product with a matrix that it reads."""
        add = self._makers.get(name)
        if add is None or add.op_type != "Add" or not self._is_read_once(add):
            return None
        biases = [one for one in add.input if one in self._weights and len(self._weights[one].dims) == 1]
        products = [one for one in add.input if self._is_product(one)]
        return (add, biases[0], products[0]) if len(biases) == len(products) == 1 else None

    def _is_product(self, name: str) -> bool:
        node = self._makers.get(name)
        return node is not None and node.op_type == "MatMul" and node.input[1] in self._weights

    # The graph

    def _only_reader(self, name: str) -> Any | None:
        """The node that reads the values of `name`, where no other does, nor the graph's caller."""
        readers = [node for node in self._readers[name] if node is None or node.op_type not in ("Shape", "Size")]
        return readers[0] if len(readers) == 1 else None

    def _is_read_once(self, node: Any) -> bool:
        return self._only_reader(node.output[0]) is not None

    def _cut(self, node: Any, source: str) -> None:
        """Take `node` out, which leaves the shape as it is: its readers read `source` instead."""
        readers = self._readers.pop(node.output[0])
        for reader in readers:
            rename_read(reader, {node.output[0]: source})
        self._readers[source] = [one for one in self._readers[source] if one is not node] + readers
        del self._makers[node.output[0]]
        self._graph.node.remove(node)

    def _put(self, kind: str, node_name: str, name: str, source: str, values: Array, reader: Any) -> None:
        """Put `kind` of `source` and a constant before `reader`."""
        self._graph.node.append(
            helper.make_node(kind, [source, self._constant(values, f"{name}/constant")], [name], name=node_name)
        )
        node = self._graph.node[-1]
        rename_read(reader, {source: name})
        self._readers[source] = [node if one is reader else one for one in self._readers[source]]
        self._makers[name], self._readers[name] = node, [reader]
        self.made.add(name)

    def _rename(self, *nodes: Any) -> None:
        """Give the outputs of `nodes`, each read once, names that say that their values are not those of before."""
        for node in nodes:
            old = node.output[0]
            if not old.endswith(_CHANGED):
                new = old + _CHANGED
                readers = self._readers.pop(old)
                for reader in readers:
                    rename_read(reader, {old: new})
                node.output[0] = new
                del self._makers[old]
                self._makers[new], self._readers[new] = node, readers
                self.made.add(new)

    def _is_mask(self, node: Any) -> bool:
        """Whether `node` puts a number in place of some scores that is so low that softmax makes nothing of it."""
        numbers = [self._values(self._weights[name]) for name in node.input[1:] if self._is_number(name)]
        return node.op_type == "Where" and len(numbers) == 1 and bool(numbers[0].reshape(()) <= _MASKED)

    def _factor(self, node: Any) -> float | None:
        """What `node` multiplies by, where that is a number."""
        if node.op_type not in ("Mul", "Div"):
            return None
        numbers = [index for index, name in enumerate(node.input) if self._is_number(name)]
        if len(numbers) != 1 or (node.op_type == "Div" and numbers != [1]):
            return None
        value = float(self._values(self._weights[node.input[numbers[0]]]).reshape(()))
        if value == 0 or not math.isfinite(value):
            return None
        return value if node.op_type == "Mul" else 1 / value

    def _is_number(self, name: str) -> bool:
        tensor = self._weights.get(name)
        return tensor is not None and tensor.data_type == TensorProto.FLOAT and int(np.prod(tensor.dims)) == 1

    def _last_sizes(self, shape: str, rank: int) -> tuple[int, ...] | None:
        """All but the first two sizes of the shape `shape` of so many axes, where they are numbers."""
        maker = self._makers.get(shape)
        if shape in self._weights:
            sizes = self._values(self._weights[shape]).reshape(-1).tolist()
            found = sizes[2:] if len(sizes) == rank else []
        elif maker is not None and maker.op_type == "Concat" and len(maker.input) == rank:
            parts = [self._weights.get(name) for name in maker.input[2:]]
            found = [int(self._values(part).reshape(-1)[0]) for part in parts if part is not None]
        else:
            return None
        return tuple(found) if len(found) == rank - 2 else None

    def _values(self, tensor: Any) -> Array:
        content = outside(tensor, self._folder)
        if content is None:
            return numpy_helper.to_array(tensor)
        return np.frombuffer(content, helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(tuple(tensor.dims))

    def _constant(self, values: Array, name: str) -> str:
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        self._graph.initializer.append(tensor)
        self._weights[name] = self._graph.initializer[-1]
        self.made.add(name)
        return name
