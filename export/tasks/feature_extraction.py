"""Text embeddings, offline: pooling goes into the graph; compared are the vectors before normalisation.

Normalisation would hide a wrong scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.vectors import OUTPUT
from export.errors import Refused
from export.gate.judged import VectorsExport
from export.lengths import described_length
from export.model_files.dense import append_dense
from export.model_files.sentence_files import read_modules, read_sentence_files
from export.nodes import find_output
from export.pooling import append_pooling
from export.tasks.base import Layout, Probe
from export.text import TextExport, prompt_of, run, sample_texts, tokens_of

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays
    from export.recipe import Recipe
    from export.source import Source

_HIDDEN_STATES = "last_hidden_state"


class FeatureExtractionExport(VectorsExport, TextExport):
    """Models as sentence-transformers loads them."""

    tag: ClassVar[str] = "feature-extraction"
    heads: ClassVar[tuple[str, ...]] = ("Model",)
    options: ClassVar[tuple[str, ...]] = ("max_length", "pooling")
    encoders: ClassVar[tuple[str, ...]] = ("t5", "mt5", "umt5")  # as sentence-transformers loads them
    may_miss: ClassVar[tuple[str, ...]] = ("pooler",)

    def claims(self, root: Path, config: Mapping[str, Any]) -> bool:
        """A sentence-transformers model that pools, or one of no transformer, which is refused in its own words."""
        return any(kind.endswith((".Pooling", ".StaticEmbedding")) for kind, _ in read_modules(root))

    def layout(self, root: Path, recipe: Recipe) -> Layout:
        """Pooling, normalisation, lengths and prompts, from sentence-transformers' files."""
        files = read_sentence_files(root, recipe.pooling)
        settings = {name: getattr(files, name) for name in files.__dataclass_fields__ if name != "transformer"}
        return Layout(files.transformer, settings)

    def describe(self, source: Source) -> str:
        """Architecture, pooling and length."""
        return f"{source.architecture}, {source.settings['pooling']} pooling, {described_length(source)}"

    def head(self, graph: Any, source: Source) -> None:
        """Pooling, and the layers behind it."""
        hidden = find_output(graph, _HIDDEN_STATES)
        if hidden is None:
            raise Refused(f"the model's graph has no {_HIDDEN_STATES}, the token vectors that {self.tag} pools")
        dimension = hidden.type.tensor_type.shape.dim[-1].dim_value or source.config.hidden_size
        append_pooling(graph, source.settings["pooling"], _HIDDEN_STATES, "attention_mask", dimension)
        append_dense(graph, source.settings["dense"])

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """The keys that engine/tasks/feature_extraction.py documents."""
        settings = source.settings
        return {
            "pooling": settings["pooling"],
            "dimension": outputs[OUTPUT][-1],
            "max_length": source.max_length,
            "normalize": settings["normalize"],
            "prompts": dict(settings["prompts"]),
            "default_prompt": settings["default_prompt"],
        }

    def probes(self, source: Source) -> Iterator[Probe]:
        """Texts with the default prompt, and one text a prompt."""
        *others, longest = super().probes(source)
        yield from others
        text = "What is the answer?"
        takes_a_prompt = "prompt_name" in getattr(self.online, "option_names", ())  # a fork's need not
        for name in source.settings["prompts"] if takes_a_prompt else ():
            asked = replace(source, settings={**source.settings, "default_prompt": name})
            probe = self.probe(asked, f"prompt {name}", text)
            yield replace(probe, payload={**probe.payload, "prompt_name": name})
        yield longest

    def probe(self, source: Source, label: str, text: str) -> Probe:
        """`text` behind the default prompt, which `probes` makes each of the prompts in turn."""
        return Probe(label, {"text": text}, [tokens_of(source, prompt_of(source) + text)])

    def samples(self, source: Source) -> Iterator[Json]:
        """Texts, without a prompt of their own."""
        return ({"text": text} for text in sample_texts(source))

    def reference(self, source: Source, model: Any, inputs: Mapping[str, Any]) -> Arrays | None:
        """The embedding before normalisation, with pooling written here a second time."""
        found = run(model, inputs, _HIDDEN_STATES)
        if found is None:
            return None
        vectors = found[_HIDDEN_STATES]
        pooled = {
            "mean": lambda: vectors.mean(0),
            "cls": lambda: vectors[0],
            "lasttoken": lambda: vectors[-1],
            "max": lambda: vectors.max(0),
            "weightedmean": lambda: np.average(vectors, 0, np.arange(1, len(vectors) + 1, dtype=np.float32)),
        }[source.settings["pooling"]]()
        for layer in source.settings["dense"]:
            pooled = layer.apply(pooled)
        return {OUTPUT: pooled}


TASK = FeatureExtractionExport()
