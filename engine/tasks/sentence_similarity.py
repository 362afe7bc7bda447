"""How near sentences are to another one, on the graph of feature-extraction, whose payloads it answers as well.

`task_config` of the manifest: as for feature-extraction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.errors import InvalidInput
from engine.tasks import payload as check
from engine.tasks.feature_extraction import FeatureExtraction
from engine.tasks.items import Request
from engine.vectors import OUTPUT, normalized

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays

_FIELDS = ("source_sentence", "source", "sentences", "inputs", "input")


class SentenceSimilarity(FeatureExtraction):
    """`{"source_sentence": ..., "sentences": [...]}`; anything else is a payload of feature-extraction."""

    summary: ClassVar[str] = "Cosine similarity of sentences to a source sentence; embeddings as well."
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"source_sentence": "A quick test.", "sentences": ["A fast trial.", "The cat sits on the mat."]},
        {"texts": ["Ein Satz auf Deutsch, etwas länger als der erste.", "混合的文本 🙂", "word " * 40]},
    )

    def parse(self, payload: Json) -> Request:
        """Check the job's input. Raises InvalidInput."""
        payload = check.require_object(payload)
        if isinstance(payload.get("inputs"), dict):  # the form of Hugging Face's own endpoints
            payload = {**{name: value for name, value in payload.items() if name != "inputs"}, **payload["inputs"]}
        payload = check.without_nulls(payload, (*_FIELDS, self.one, self.many))
        sources = [name for name in ("source_sentence", "source") if name in payload]
        if not sources and "sentences" not in payload:
            return super().parse(payload)
        known = ("source_sentence", "source", "sentences", "truncate", "prompt_name")
        check.refuse_unknown(payload, known, check.OF_EVERY_JOB)
        if len(sources) != 1 or "sentences" not in payload:
            raise InvalidInput("`input` needs `source_sentence` (a string) and `sentences` (a list of strings)")
        source = self.item(payload[sources[0]], sources[0], payload)
        sentences = self.items(payload["sentences"], "sentences", payload)
        return Request([source, *sentences], True, {**self.options(payload), "source": sources[0]})

    def refuse_many(self, request: Request) -> None:
        """None of a comparison, which is answered with a number a sentence."""
        if "source" not in request.options:
            super().refuse_many(request)

    def name_of(self, request: Request, index: int, row: int) -> str:
        """As in the base class, of a comparison the field."""
        if source := request.options.get("source"):
            return f"`sentences[{index - 1}]`" if index else f"`{source}`"
        return super().name_of(request, index, row)

    def split(self, request: Request, rows: int) -> Sequence[Request]:
        """None of a comparison, which needs its source, the first of its texts."""
        return [] if "source" in request.options else super().split(request, rows)

    def postprocess(self, request: Request, outputs: Sequence[Arrays]) -> Json:
        """`{"similarities": [...], "usage"}`: a cosine a sentence, in their order."""
        if "source" not in request.options:
            return super().postprocess(request, outputs)
        vectors = normalized(np.stack([row[OUTPUT] for row in outputs]))
        return {"similarities": (vectors[1:] @ vectors[0]).tolist(), "usage": self.usage(request)}


TASK = SentenceSimilarity
