"""BERT encoders as ONNX graphs at real sizes, with seeded random weights, made of numpy and onnx alone.

Latency does not depend on the values of weights; so a machine without torch, transformers and a model hub can measure.
Names of weights are those of transformers' BertModel, which a test holds the graph against.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from engine.tensors import Array

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "embedding"
_OPSET, _IR_VERSION = 17, 8  # what TensorRT 8.6's parser takes
_EPSILON = 1e-12  # of BERT's layer normalisation
_INITIALIZER_RANGE = 0.02  # standard deviation of BERT's weights at the start of its training
_FEWEST_TOKENS = 1e-9


@dataclass(frozen=True)
class Shape:
    """The sizes of an encoder, by the names of transformers' BertConfig."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int = 30522
    max_position_embeddings: int = 512
    type_vocab_size: int = 2


SHAPES: Mapping[str, Shape] = {
    "minilm": Shape(6, 384, 12, 1536),  # sentence-transformers/all-MiniLM-L6-v2
    "bert-base": Shape(12, 768, 12, 3072),
    "bert-large": Shape(24, 1024, 16, 4096),
}


def weights_of(shape: Shape, seed: int = 0) -> dict[str, Array]:
    """Random float32 weights by transformers' names; matrices are (out, in), as torch keeps them."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(dims, np.float32) * _INITIALIZER_RANGE + _mean(name)).astype(np.float32)
        for name, dims in _dims(shape)
    }


def _mean(name: str) -> float:
    return 1.0 if name.endswith("LayerNorm.weight") else 0.0


def _dims(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = shape.hidden_size, shape.intermediate_size
    for name, rows in (
        ("word", shape.vocab_size),
        ("position", shape.max_position_embeddings),
        ("token_type", shape.type_vocab_size),
    ):
        yield f"embeddings.{name}_embeddings.weight", (rows, hidden)
    yield from ((f"embeddings.LayerNorm.{part}", (hidden,)) for part in ("weight", "bias"))
    for index in range(shape.num_hidden_layers):
        layer = f"encoder.layer.{index}."
        linear = {f"attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
        linear["attention.output.dense"] = (hidden, hidden)
        linear["intermediate.dense"] = (inner, hidden)
        linear["output.dense"] = (hidden, inner)
        for name, dims in linear.items():
            yield f"{layer}{name}.weight", dims
            yield f"{layer}{name}.bias", dims[:1]
        for name in ("attention.output", "output"):
            yield from ((f"{layer}{name}.LayerNorm.{part}", (hidden,)) for part in ("weight", "bias"))


def bert_graph(shape: Shape, weights: Mapping[str, Array]) -> Any:
    """An ONNX model from int32 tokens to `embedding`, float32 (batch, hidden): the mean over each text's tokens."""
    writer = _Writer(weights)
    hidden = _encoder(writer, shape)
    mask = writer.add("Unsqueeze", writer.add("Cast", "attention_mask", to=TensorProto.FLOAT), writer.indices([2]))
    total = writer.add("ReduceSum", writer.add("Mul", hidden, mask), writer.indices([1]), keepdims=0)
    count = writer.add(
        "Max", writer.add("ReduceSum", mask, writer.indices([1]), keepdims=0), writer.number(_FEWEST_TOKENS)
    )
    writer.add("Div", total, count, output=OUTPUT)
    graph = helper.make_graph(
        writer.nodes,
        "bert",
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "length"]) for name in INPUTS],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", shape.hidden_size])],
        writer.constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


class _Writer:
    """Nodes and constants, named by number."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._weights = weights
        self._known: dict[str, str] = {}

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def number(self, value: float) -> str:
        return self._constant(f"number {value}", np.array(value, np.float32))

    def indices(self, values: list[int]) -> str:
        return self._constant(f"indices {values}", np.array(values, np.int64))

    def weight(self, name: str, *, transposed: bool = False) -> str:
        values = self._weights[name]
        return self._constant(name, values.T if transposed else values)

    def linear(self, name: str, values: str) -> str:
        product = self.add("MatMul", values, self.weight(f"{name}.weight", transposed=True))
        return self.add("Add", product, self.weight(f"{name}.bias"))

    def normalized(self, name: str, values: str) -> str:
        scale, bias = (self.weight(f"{name}.LayerNorm.{part}") for part in ("weight", "bias"))
        return self.add("LayerNormalization", values, scale, bias, axis=-1, epsilon=_EPSILON)

    def _constant(self, name: str, values: Array) -> str:
        if name not in self._known:
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
            self._known[name] = name
        return name


def _encoder(writer: _Writer, shape: Shape) -> str:
    mask = writer.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    mask = writer.add("Sub", writer.number(1.0), writer.add("Unsqueeze", mask, writer.indices([1, 2])))
    mask = writer.add("Mul", mask, writer.number(float(np.finfo(np.float32).min)))
    hidden = _embeddings(writer)
    for index in range(shape.num_hidden_layers):
        layer = f"encoder.layer.{index}."
        attended = writer.linear(f"{layer}attention.output.dense", _attention(writer, shape, layer, hidden, mask))
        hidden = writer.normalized(f"{layer}attention.output", writer.add("Add", attended, hidden))
        inner = _gelu(writer, writer.linear(f"{layer}intermediate.dense", hidden))
        outer = writer.linear(f"{layer}output.dense", inner)
        hidden = writer.normalized(f"{layer}output", writer.add("Add", outer, hidden))
    return hidden


def _embeddings(writer: _Writer) -> str:
    table = "embeddings.{}_embeddings.weight".format
    words = writer.add("Gather", writer.weight(table("word")), "input_ids")
    types = writer.add("Gather", writer.weight(table("token_type")), "token_type_ids")
    length = writer.add("Slice", writer.add("Shape", "input_ids"), writer.indices([1]), writer.indices([2]))
    positions = writer.add("Slice", writer.weight(table("position")), writer.indices([0]), length, writer.indices([0]))
    total = writer.add("Add", writer.add("Add", words, types), positions)
    return writer.normalized("embeddings", total)


def _attention(writer: _Writer, shape: Shape, layer: str, hidden: str, mask: str) -> str:
    heads, size = shape.num_attention_heads, shape.hidden_size // shape.num_attention_heads
    split = writer.indices([0, 0, heads, size])

    def of_heads(part: str, order: list[int]) -> str:
        values = writer.linear(f"{layer}attention.self.{part}", hidden)
        return writer.add("Transpose", writer.add("Reshape", values, split), perm=order)

    query, value = (of_heads(part, [0, 2, 1, 3]) for part in ("query", "value"))
    scores = writer.add("MatMul", query, of_heads("key", [0, 2, 3, 1]))
    scores = writer.add("Add", writer.add("Div", scores, writer.number(math.sqrt(size))), mask)
    mixed = writer.add("MatMul", writer.add("Softmax", scores, axis=-1), value)
    joined = writer.add("Transpose", mixed, perm=[0, 2, 1, 3])
    return writer.add("Reshape", joined, writer.indices([0, 0, shape.hidden_size]))


def _gelu(writer: _Writer, values: str) -> str:
    """BERT's own, with the error function: x * (1 + erf(x / sqrt(2))) / 2."""
    error = writer.add("Erf", writer.add("Div", values, writer.number(math.sqrt(2))))
    product = writer.add("Mul", values, writer.add("Add", error, writer.number(1.0)))
    return writer.add("Mul", product, writer.number(0.5))
