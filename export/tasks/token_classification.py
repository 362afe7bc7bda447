"""Classifiers of tokens, offline. Logits of every token leave the graph: which words they make is the text's to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.text.scores import softmax
from export.measures import Measure
from export.nodes import require_output, set_outputs
from export.tasks.base import labels
from export.tasks.text_classification import SCORES, compare_scores
from export.text import TOKENS, TextExport, run, sample_texts

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays
    from export.source import Source


class TokenClassificationExport(TextExport):
    """Token classification models."""

    tag: ClassVar[str] = "token-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForTokenClassification",)
    measures: ClassVar[Sequence[Measure]] = SCORES

    def head(self, graph: Any, source: Source) -> None:
        """The logits as they are."""
        require_output(graph, "logits", self.tag)
        set_outputs(graph, [("logits", "float32", (*TOKENS, source.config.num_labels))])

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """Labels, and the token that has no word of its own."""
        names, unknown = labels(source.model, source.config), source.tokenizer.unk_token_id
        return {**super().task_config(source, outputs), "labels": names, "unk_token_id": unknown}

    def samples(self, source: Source) -> Iterator[Json]:
        """Texts."""
        return ({"text": text} for text in sample_texts(source))

    def reference(self, source: Source, model: Any, inputs: Mapping[str, Any]) -> Arrays | None:
        """The logits."""
        return run(model, inputs, "logits")

    def compare(self, source: Source, expected: Arrays, found: Arrays) -> Sequence[float]:
        """Of every token's scores."""
        return compare_scores(softmax(expected["logits"]), softmax(found["logits"]))


TASK = TokenClassificationExport()
