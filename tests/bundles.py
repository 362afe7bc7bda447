"""Bundles small enough to make in every test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from engine.bundle import Graph, Manifest, open_bundle, write_manifest
from engine.tensors import TensorSpec
from export.bundle_folder import new_bundle_folder

DIMENSION = 8
MAX_LENGTH = 32
_CORPUS = ["the quick brown fox jumps over the lazy dog", "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3"]


def write_small_bundle(out: Path, **changes: object) -> Path:
    """Write a bundle of a toy embedding model to `out`; `changes` replace fields of the manifest."""
    inputs = (
        TensorSpec("input_ids", "int32", ("batch", "length"), 0),
        TensorSpec("attention_mask", "int32", ("batch", "length")),
    )
    outputs = (TensorSpec("embedding", "float32", ("batch", DIMENSION)),)
    config = {
        "pooling": "mean",
        "dimension": DIMENSION,
        "max_length": MAX_LENGTH,
        "normalize": True,
        "prompts": {"query": "the quick "},
        "default_prompt": None,
    }
    fields = {
        "model": "toy",
        "revision": None,
        "architecture": "Toy",
        "task": "feature-extraction",
        "task_config": config,
        "precision": "fp32",
        "graphs": {"model": Graph(inputs, outputs, {"fp32": "graphs/model/fp32.onnx"})},
        "versions": {},
        **changes,
    }
    with new_bundle_folder(out) as folder:
        (folder / "graphs" / "model").mkdir(parents=True)
        onnx.save(toy_model(), folder / "graphs" / "model" / "fp32.onnx")
        toy_tokenizer().save(str(folder / "tokenizer.json"))
        write_manifest(folder, Manifest(**fields))  # type: ignore[arg-type]
    return out


def move_weights_out(bundle: Path, *, integers: bool = False) -> Path:
    """Put the weights of the bundle's graph into graphs/model/weights.bin; the graph's path.

    With `integers` those as well, where ONNX Runtime does not look for them.
    """
    graph = bundle / "graphs/model/fp32.onnx"
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if integers or tensor.data_type == TensorProto.FLOAT:  # only raw bytes move into a file
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, graph, save_as_external_data=True, location="weights.bin", size_threshold=0)
    write_manifest(bundle, open_bundle(bundle).manifest)
    return graph


def overflowing(bundle: Path, *, square: bool = False) -> None:
    """Make the answers of the bundle's graph a million times larger on the way, for which fp16 has no number.

    ONNX Runtime on a CPU computes fp16 in fp32, so that there they pass. `square`: by a square, and its root.
    """
    file = bundle / "graphs/model/fp32.onnx"
    model = onnx.load(file)
    model.graph.node[-1].output[0] = "small"
    wide = 2048 // DIMENSION  # a matrix of more than 1024 elements is a weight, which half precision takes
    copies = [[float(column % DIMENSION == row) for column in range(wide)] for row in range(DIMENSION)]
    model.graph.initializer.extend(
        helper.make_tensor(name, TensorProto.FLOAT, dims, values)
        for name, dims, values in (
            ("wider", [DIMENSION, wide], [one for row in copies for one in row]),
            ("mean", [wide, DIMENSION], [one * DIMENSION / wide for row in zip(*copies, strict=True) for one in row]),
            ("thousand", [1], [1e3]),
            ("thousandth", [1], [1e-3]),
            ("two", [1], [2.0]),
        )
    )
    larger: Sequence[tuple[str, str]] = [("Mul", "thousand")] * 2 + [("Mul", "thousandth")] * 2
    if square:
        larger = [("Mul", "thousand"), ("Pow", "two"), ("Sqrt", ""), ("Mul", "thousandth")]
    steps = (("MatMul", "wider"), *larger, ("MatMul", "mean"))
    names = ["small", *(f"step{number}" for number in range(len(steps) - 1)), "embedding"]
    for (kind, by), before, after in zip(steps, names[:-1], names[1:], strict=True):
        model.graph.node.append(helper.make_node(kind, [before, by] if by else [before], [after], name=after))
    file.unlink()  # it may be a link to another bundle's
    onnx.save(model, file)
    write_manifest(bundle, open_bundle(bundle).manifest)


def toy_tokenizer() -> Tokenizer:
    """A word-piece tokenizer of the words of two sentences."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = sorted(set(" ".join(_CORPUS).split()))
    pieces = [*special, *words, *(f"##{word}" for word in words if len(word) == 1)]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def toy_model() -> onnx.ModelProto:
    """embedding[b, k] = sum over the masked ids * (k + 1) / 1000: every row is its own, padding counts for nothing."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["ids", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis"], ["sums"], keepdims=1),
        helper.make_node("Mul", ["sums", "scale"], ["embedding"]),
    ]
    shape = ["batch", "length"]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIMENSION])],
        [
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("scale", TensorProto.FLOAT, [1, DIMENSION], [(k + 1) / 1000 for k in range(DIMENSION)]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model
