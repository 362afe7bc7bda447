"""Sparse embeddings (SPLADE): a weight for every token that a text is about, the largest over its own tokens.

The tag is the one that such models have on the Hub, where the pipeline tag alone would not tell them from dense ones.

`task_config` of the manifest: prompts (name -> prefix) and default_prompt (a name, or null), max_length (tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.tasks import payload as check
from engine.tasks.items import Part, Request
from engine.text.task import TextTask

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays

_FORMATS = ("tokens", "indices")
_ENTRY = len("1,0.1,")


class SparseEncoder(TextTask):
    """`{"text": ...}` or `{"texts": [...]}`."""

    summary: ClassVar[str] = "Sparse text embeddings (SPLADE): token and weight, for search in an inverted index."
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "A quick test."},
        {"texts": ["The cat sits on the mat.", "Ein Satz auf Deutsch."], "top_k": 3, "format": "indices"},
    )
    option_names: ClassVar[tuple[str, ...]] = ("top_k", "format", "prompt_name", "truncate")

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`top_k` (all), `format` (tokens) and `prompt_name` (the model's default)."""
        return {
            **super().options(payload),
            "top_k": check.whole_number(payload, "top_k", 1, 1_000_000),
            "format": check.choice(payload, "format", _FORMATS),
            "prompt": check.prompt(payload, self.config),
        }

    def texts(self, item: Any, options: Mapping[str, Any]) -> Sequence[str]:
        """The text behind its prompt."""
        return [options["prompt"] + item]

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """Weights above 0, the largest first: an object of tokens, or `indices` into the vocabulary and `values`."""
        weights = outputs[0]["weights"]
        found = np.flatnonzero(weights)
        found = found[np.argsort(-weights[found], kind="stable")][: options["top_k"]]
        values = weights[found].tolist()
        if options["format"] == "indices":
            return {"indices": found.tolist(), "values": values}
        names = map(self.tokens.tokenizer.id_to_token, found.tolist())
        # Rows of the output layer behind the vocabulary, which some models have, are no tokens.
        return {name: value for name, value in zip(names, values, strict=True) if name is not None}

    def least_bytes(self, answer: Json) -> int:
        """A text of a letter may be about thousands of tokens."""
        values = answer.get("values")  # which may be a token's name
        return _ENTRY * len(values if isinstance(values, list) else answer)

    def postprocess(self, request: Request, outputs: Sequence[Arrays]) -> Json:
        """`embedding`, or `embeddings`, and `usage`."""
        answers = super().postprocess(request, outputs)
        return {"embedding" if request.single else "embeddings": answers, "usage": self.usage(request)}


TASK = SparseEncoder
