"""Stage 6, for GPUs: the portable graph with its heavy work in half precision, decided in the graph, node by node.

Matrix products, convolutions and embedding tables, and the light work between them, are fp16 (or bf16). Whatever sums,
squares or exponentiates (LayerNorm, Softmax, pooling ...) stays fp32 unless it is asked for, and so does what is
computed from positions and masks alone: rotary angles and "minus infinity" do not fit into fp16. Inputs and outputs
keep their types. Attention is rewritten before (attention.py).

Every runtime runs the types that it finds here; export/precision/rounded.py computes on a CPU what they come to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.nodes import drop_unread_constants, names_read, readers_of, rename_read, replace_all, subgraphs
from export.optimize import add_graph, load_whole
from export.precision.attention import lean_attention

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}

_HEAVY = frozenset("MatMul Gemm Conv ConvTranspose Einsum".split())
_LIGHT = frozenset(
    "Abs Add BatchNormalization Clip Concat Div Elu Erf Expand Flatten Gather GatherElements GatherND HardSigmoid "
    "HardSwish Identity LeakyRelu Max MaxPool Min Mul Neg Pad PRelu Relu Reshape Sigmoid Slice Split Squeeze Sub Tanh "
    "Tile Transpose Unsqueeze Where".split()
)
_SUMS = frozenset(
    "AveragePool Exp Gelu GlobalAveragePool GroupNormalization InstanceNormalization LayerNormalization Log LogSoftmax "
    "Pow Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Softmax Softplus Sqrt TopK".split()
)
"""What stays fp32 unless it is asked for."""
_ANY_TYPE = frozenset(("Shape", "Size"))
"""Read a tensor without looking at its values."""
_SMALL_TABLE = 1024
"""Elements. A matrix that positions are multiplied with (the frequencies of rotary embeddings) is no weight."""
LARGEST = 65504.0  # of fp16; a mask's fp32 minimum becomes its negative instead of infinity


def half(portable: Path, precision: str, *, sums: bool = False, kept: Collection[str] = (), lean: bool = True) -> Path:
    """Write the graph in `precision`, a key of TYPES, beside `portable`, with its weights, and return its path.

    `sums`: also what sums, squares and exponentiates is in it. `kept` are outputs of nodes that stay fp32. `lean`: with
    attention.py's attention; names in `kept` are then those of `lean_graph`.
    """
    types = float_tensors(portable)
    model = load_whole(portable)
    _constants_to_initializers(model.graph)
    if lean:
        types |= lean_attention(model.graph, types, portable.parent)
    _convert(model.graph, types, TYPES[precision], _HEAVY | _LIGHT | (_SUMS if sums else set()), kept)
    del model.graph.value_info[:]
    path = portable.with_name(f"{precision}.onnx")
    add_graph(model, path, {})
    onnx.checker.check_model(path, full_check=True)
    return path


@contextmanager
def lean_graph(portable: Path) -> Iterator[Path]:
    """The graph that `half` starts from, in fp32: for the block, a file beside `portable` that shares its weights."""
    model = onnx.load(portable, load_external_data=False)
    _constants_to_initializers(model.graph)
    lean_attention(model.graph, float_tensors(portable), portable.parent)
    drop_unread_constants(model.graph)
    del model.graph.value_info[:]
    path = portable.with_name("lean.onnx")
    try:
        onnx.save(model, path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def float_tensors(portable: Path) -> set[str]:
    """Names of the fp32 tensors; inferred without the weights, which may be larger than a protobuf may be."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(portable, load_external_data=False), strict_mode=True).graph
    tensors = [*graph.input, *graph.value_info, *graph.output]
    found = {tensor.name for tensor in tensors if tensor.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}


def _convert(graph: Any, floats: set[str], dtype: int, kinds: Set[str], kept: Collection[str]) -> None:
    chosen = _Choice(graph, floats, kinds, set(kept)).half_nodes()
    weights = {tensor.name: tensor for tensor in graph.initializer}
    is_half = {name for index in chosen for name in graph.node[index].output if name in floats}
    converted: dict[tuple[str, int], str] = {}
    nodes: list[Any] = []

    def as_type(name: str, wanted: int) -> str:
        """The name under which `name` has the type `wanted`; makes a cast or a constant when it is needed first."""
        if name not in floats or (wanted == dtype) == (name in is_half):
            return name
        if (name, wanted) not in converted:
            new = converted[name, wanted] = f"{name}/{TensorProto.DataType.Name(wanted).lower()}"
            if name in weights:
                graph.initializer.append(_converted(weights[name], new, wanted))
            else:
                nodes.append(helper.make_node("Cast", [name], [new], name=new, to=wanted))
        return converted[name, wanted]

    for index, node in enumerate(list(graph.node)):
        if node.op_type not in _ANY_TYPE:
            wanted = dtype if index in chosen else TensorProto.FLOAT
            # In an order of its own, for that of a set differs from run to run, and equal models give equal bytes.
            rename_read(node, {name: as_type(name, wanted) for name in sorted(names_read(node))})
        nodes.append(node)
    _keep_outputs(graph, nodes, is_half, dtype)
    replace_all(graph.node, nodes)
    drop_unread_constants(graph)


class _Choice:
    """Which nodes run in half precision: of `kinds`, and with no output in `kept`."""

    def __init__(self, graph: Any, floats: set[str], kinds: Set[str], kept: set[str]) -> None:
        self._kinds = kinds
        self._kept = kept
        self._nodes = list(graph.node)
        self._floats = floats
        self._sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
        self._readers = readers_of(graph)
        self._from_indices = self._derived_from_indices({tensor.name for tensor in graph.input} & floats)

    def half_nodes(self) -> set[int]:
        """Indices into the graph's nodes."""
        half: set[int] = set()
        single = set(self._from_indices)  # names of fp32 tensors, beside the graph's own inputs
        for index, node in enumerate(self._nodes):
            outputs = {name for name in node.output if name in self._floats}
            if not outputs or outputs & (self._from_indices | self._kept) or not self._is_half(node, single):
                single |= outputs
            else:
                half.add(index)
        return half

    def _is_half(self, node: Any, single: set[str]) -> bool:
        if node.op_type in _HEAVY or self._is_table(node):
            return True
        if node.op_type not in self._kinds:
            return False
        if node.op_type in _SUMS:  # asked for
            return True
        inputs = self._activations(node)
        in_single = [name for name in inputs if name in single]
        if len(in_single) == len(inputs):  # what follows a sum or a softmax stays fp32 until something heavy comes
            return False
        readers = [reader for name in node.output for reader in self._readers[name]]
        if readers and all(reader.op_type == "Softmax" and self._is_fixed(reader) for reader in readers):
            return False
        if not in_single:
            return True
        # Both kinds meet. fp32 wins where it costs nothing: the value is read in fp32 anyway, as a LayerNorm's input.
        beside = (reader for name in inputs if name not in single for reader in self._readers[name])
        return not any(self._is_fixed(reader) for reader in (*readers, *beside))

    def _is_fixed(self, node: Any) -> bool:
        """Whether `node` runs in fp32 whatever its neighbours do."""
        return node.op_type not in self._kinds | _ANY_TYPE or not self._kept.isdisjoint(node.output)

    def _is_table(self, node: Any) -> bool:
        return node.op_type == "Gather" and self._sizes.get(node.input[0], 0) > _SMALL_TABLE

    def _activations(self, node: Any) -> list[str]:
        return [name for name in node.input if name in self._floats and name not in self._sizes]

    def _derived_from_indices(self, real_inputs: set[str]) -> set[str]:
        """Floats computed from the integer inputs and small constants alone: masks, positions, rotary angles."""
        found: set[str] = set()
        for node in self._nodes:
            floats = [name for name in node.input if name in self._floats]
            constants = [name for name in floats if name in self._sizes]
            computed = all(name in found or name in constants for name in floats) and not real_inputs & set(floats)
            small = all(self._sizes[name] <= _SMALL_TABLE for name in constants)
            if computed and small and node.op_type not in _HEAVY - {"MatMul"} and not subgraphs(node):
                found |= {name for name in node.output if name in self._floats}
        return found


def _constants_to_initializers(graph: Any) -> None:
    kept = []
    for node in graph.node:
        values = [a.t for a in node.attribute if a.name == "value"]
        if node.op_type == "Constant" and values:
            values[0].name = node.output[0]
            graph.initializer.append(values[0])
        else:
            kept.append(node)
    replace_all(graph.node, kept)


def _converted(tensor: Any, name: str, dtype: int) -> Any:
    values = numpy_helper.to_array(tensor)
    if dtype == TensorProto.FLOAT16:
        return numpy_helper.from_array(np.clip(values, -LARGEST, LARGEST).astype(np.float16), name)
    # Round to the nearest, to even at a tie, then keep the upper half of the bits.
    bits = np.ascontiguousarray(values).view(np.uint32)
    upper = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    made = TensorProto(name=name, data_type=dtype, dims=tensor.dims)
    made.raw_data = upper.tobytes()
    return made


def _keep_outputs(graph: Any, nodes: list[Any], is_half: set[str], dtype: int) -> None:
    """An output that is computed in half precision is cast back under its own name."""
    for output in graph.output:
        if output.name in is_half:
            inner = f"{output.name}/{TensorProto.DataType.Name(dtype).lower()}"
            for node in nodes:
                node.output[:] = [inner if name == output.name else name for name in node.output]
                rename_read(node, {output.name: inner})
            # A reader in fp32 has its own cast already.
            nodes.append(helper.make_node("Cast", [inner], [output.name], name=inner, to=TensorProto.FLOAT))
