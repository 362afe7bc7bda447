"""Classifiers of tokens, offline. Logits of every token leave the graph: which words they make is the text's to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.text.scores import softmax
from export.gate.measures import SCORES, Measure, compare_scores
from export.nodes import require_output, set_outputs
from export.tasks.base import labels
from export.text import TOKENS, TextExport, run, sample_texts

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Array, Arrays
    from export.source import Source


class TokenClassificationExport(TextExport):
    """Token classification models."""

    tag: ClassVar[str] = "token-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForTokenClassification",)
    measures: ClassVar[Sequence[Measure]] = SCORES
    measures_of_all: ClassVar[Sequence[Measure]] = (
        # F1 over all spans of tokens with one label: what a caller gets is such spans.
        Measure("spans", 0.99, 0.8, at_least=True, column="same spans", half_limit=0.97),
    )

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

    def compare_all(self, source: Source, expected: Sequence[Arrays], found: Sequence[Arrays]) -> Sequence[float]:
        """How many of the spans are the same."""
        right = made = same = 0
        for one, other in zip(expected, found, strict=True):
            a, b = (_spans(_best(values["logits"], one["logits"])) for values in (one, other))
            right, made, same = right + len(a), made + len(b), same + len(a & b)
        return [2 * same / (right + made) if right + made else 1.0]


_TIED = 1e-4  # logits


def _best(logits: Array, exact: Array) -> Array:
    """The best label of every token; where two are tied in `exact`, the first of the two."""
    labels: Array = logits.argmax(-1)
    if exact.shape[-1] > 1:
        top = np.partition(exact, -2, axis=-1)[:, -2:]
        labels = np.where(top[:, 1] - top[:, 0] <= _TIED, exact.argmax(-1), labels)
    return labels


def _spans(labels: Array) -> set[tuple[int, int, int]]:
    """Label, beginning and end of every run of tokens with one label."""
    ends = [*(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return {(int(labels[begin]), begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)}


TASK = TokenClassificationExport()
