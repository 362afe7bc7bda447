"""Bundles of BERT encoders with random weights: everything that the worker needs to serve them, made without torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from benchmarks.bert_graph import INPUTS, OUTPUT, SHAPES, Shape, bert_graph, weights_of
from engine.bundle import Graph, Manifest, open_bundle, write_manifest
from engine.errors import BundleError
from engine.tensors import TensorSpec
from export.bundle_folder import new_bundle_folder
from export.optimize import add_graph

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_MADE_BY = ("numpy", "onnx", "tokenizers")


def bert_bundle(name: str, out: Path, shape: Shape | None = None) -> Path:
    """The bundle of SHAPES[name], or of `shape`, at `out`; made when it is not there and whole."""
    try:
        open_bundle(out).verify()
    except BundleError:
        _write(name, out, shape or SHAPES[name])
    return out


def text_of(tokens: int, seed: int = 0) -> str:
    """A text that the bundles' tokenizer makes `tokens` tokens of, [CLS] and [SEP] included."""
    return " ".join(_word((seed * 1009 + number) % 400) for number in range(tokens - 2))


def _write(name: str, out: Path, shape: Shape) -> None:
    dynamic = ("batch", "length")
    with new_bundle_folder(out) as folder:
        onnx = folder / "graphs" / "model" / "fp32.onnx"
        onnx.parent.mkdir(parents=True)
        add_graph(bert_graph(shape, weights_of(shape)), onnx, {})
        _tokenizer(shape.vocab_size).save(str(folder / "tokenizer.json"))
        (folder / "config.json").write_text(json.dumps({"model_type": "bert", **asdict(shape)}))
        graph = Graph(
            inputs=tuple(TensorSpec(name, "int32", dynamic) for name in INPUTS),
            outputs=(TensorSpec(OUTPUT, "float32", ("batch", shape.hidden_size)),),
            onnx={"fp32": onnx.relative_to(folder).as_posix()},
        )
        config = {
            "pooling": "mean",
            "dimension": shape.hidden_size,
            "max_length": shape.max_position_embeddings,
            "normalize": True,
            "prompts": {},
            "default_prompt": None,
        }
        manifest = Manifest(
            model=f"{name}, random weights",
            revision=None,
            architecture="BertModel",
            task="feature-extraction",
            task_config=config,
            precision="fp32",
            graphs={"model": graph},
            versions={package: metadata.version(package) for package in _MADE_BY},
        )
        write_manifest(folder, manifest)


def _word(number: int) -> str:
    """Of letters only: "aaa", "aab" ...; the tokenizer knows each as a whole."""
    return "".join(chr(ord("a") + number // power % 26) for power in (676, 26, 1))


def _tokenizer(size: int) -> Tokenizer:
    """Like BERT's, at its size."""
    words = [*_SPECIAL, *(_word(number) for number in range(min(size - len(_SPECIAL), 26**3)))]
    words += [f"##{number}" for number in range(size - len(words))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 (not that kind of token)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer
