"""SPLADE, offline: a masked language model whose logits become a weight for each token of the vocabulary, in the graph.

The whole vector leaves the graph, 122 KB a row of BERT's vocabulary: how many weights are above zero only the text
decides, so that a fixed number of the best ones would cut some.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from onnx import TensorProto

from export.errors import Refused
from export.gate.judged import VectorsExport
from export.model_files.json_files import one_of, read_json
from export.model_files.sentence_files import class_name, read_modules, read_prompts, read_transformer_options
from export.nodes import Nodes, require_output, set_outputs
from export.tasks.base import Layout, Probe
from export.text import TextExport, prompt_of, run, sample_texts, tokens_of

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays
    from export.recipe import Recipe
    from export.source import Source

_TRANSFORMER = "fill-mask"
_POOLING_KEYS = {"pooling_strategy": one_of("max", "sum"), "activation_function": one_of("relu", "log1p_relu")}


class SparseEncoderExport(VectorsExport, TextExport):
    """Models as sentence-transformers' SparseEncoder loads them: a masked language model and SpladePooling."""

    tag: ClassVar[str] = "sparse-encoder"
    exporter: ClassVar[str] = "fill-mask"
    output: ClassVar[str] = "weights"

    def claims(self, root: Path, config: Mapping[str, Any]) -> bool:
        """A SparseEncoder's files."""
        kind = read_json(root / "config_sentence_transformers.json").get("model_type")
        return kind == "SparseEncoder" or any(name.endswith("SpladePooling") for name, _ in read_modules(root))

    def layout(self, root: Path, recipe: Recipe) -> Layout:
        """Pooling, prompts and length; a masked language model without such files is pooled as SPLADE v2 does."""
        modules = [(class_name(kind), path) for kind, path in read_modules(root)]
        kinds = [name for name, _ in modules]
        if "Router" in kinds:
            raise Refused(
                "modules.json lists Router: queries and documents go different ways, of which a bundle has one; choose "
                "a model whose modules are a Transformer and SpladePooling"
            )
        if modules and kinds not in (["Transformer", "SpladePooling"], ["MLMTransformer", "SpladePooling"]):
            raise Refused(f"modules.json lists {', '.join(kinds)}; a bundle holds a Transformer and SpladePooling")
        pooling = read_json(root / modules[1][1] / "config.json", keys=_POOLING_KEYS) if modules else {}
        folder = modules[0][1] if modules else ""
        prompts, default = read_prompts(root, "SparseEncoder")
        options = read_transformer_options(root / folder, _TRANSFORMER)
        settings = {
            "strategy": pooling.get("pooling_strategy") or "max",
            "logs": 2 if pooling.get("activation_function") == "log1p_relu" else 1,
            "prompts": prompts,
            "default_prompt": default,
            "max_length": options.get("max_seq_length"),
            "lowercase": options.get("do_lower_case"),
        }
        return Layout(folder, settings)

    def head(self, graph: Any, source: Source) -> None:
        """log(1 + relu(logits)) over the tokens: the largest, or the sum."""
        require_output(graph, "logits", self.tag)
        nodes = Nodes(graph, "splade")
        mask = nodes.add("Cast", "mask_float", "attention_mask", to=TensorProto.FLOAT)
        mask = nodes.add("Unsqueeze", "mask", mask, nodes.constant("last_axis", [2], np.int64))
        weights = nodes.add("Mul", "masked", "logits", mask)
        if source.settings["strategy"] == "max":
            # Neither function changes which is the largest: applied behind, they cost one row of the vocabulary.
            largest = nodes.add("ReduceMax", "largest", weights, axes=[1], keepdims=0)
            _logarithm(nodes, largest, source.settings["logs"], "weights")
        else:
            weights = _logarithm(nodes, weights, source.settings["logs"], "")
            tokens = nodes.constant("tokens_axis", [1], np.int64)
            nodes.add("ReduceSum", "sum", weights, tokens, output="weights", keepdims=0)
        set_outputs(graph, [("weights", "float32", ("batch", source.config.vocab_size))])

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """Prompts and length."""
        settings = {name: source.settings[name] for name in ("prompts", "default_prompt")}
        return {**super().task_config(source, outputs), **settings}

    def probe(self, source: Source, label: str, text: str) -> Probe:
        """The text behind the default prompt."""
        return Probe(label, {"text": text}, [tokens_of(source, prompt_of(source) + text)])

    def samples(self, source: Source) -> Iterator[Json]:
        """Texts."""
        return ({"text": text} for text in sample_texts(source))

    def reference(self, source: Source, model: Any, inputs: Mapping[str, Any]) -> Arrays | None:
        """The weights, as SpladePooling makes them."""
        found = run(model, inputs, "logits")
        if found is None:
            return None
        values = np.maximum(found["logits"], 0)
        for _ in range(source.settings["logs"]):
            values = np.log1p(values)
        return {"weights": values.max(0) if source.settings["strategy"] == "max" else values.sum(0)}


def _logarithm(nodes: Nodes, values: str, times: int, output: str) -> str:
    values = nodes.add("Relu", "positive", values)
    one = nodes.constant("one", 1, np.float32)
    for number in range(times):
        more = nodes.add("Add", f"plus_one_{number}", values, one)
        values = nodes.add("Log", f"log_{number}", more, output=output if number == times - 1 else "")
    return values


TASK = SparseEncoderExport()
