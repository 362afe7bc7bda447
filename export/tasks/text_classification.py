"""Classifiers of texts, offline. Only logits leave the graph; which function makes scores of them a request may say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.text.scores import FUNCTIONS, default_function
from export.measures import Measure, agreement, of_both, score_difference
from export.nodes import require_output, set_outputs
from export.tasks.base import labels
from export.text import TextExport, run, sample_texts

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Array, Arrays
    from export.source import Source

SCORES = (
    # Scores are what a caller sees. In fp32 the same model in another runtime differs by about 1e-6.
    Measure("difference", 1e-4, 0.1, column="difference", half_limit=0.02),
    # Whether the best is the same; where the two best are so near that differences may swap them, either may be.
    # In less than fp32 the difference alone decides for a row; how often the best is the same, for all rows together.
    Measure("agreement", 1.0, 0.0, at_least=True, column="same best", half_limit=0.0),
)
"""Measures of tasks that answer with scores."""

SAME_BEST = Measure("same_best", 0.99, 0.9, at_least=True, column="same best", half_limit=0.98, of_all=True)
"""Of such tasks: the share of all rows whose best label is the same, nearly equal ones included."""


def compare_scores(expected: Array, found: Array) -> Sequence[float]:
    """The figures of SCORES."""
    return score_difference(expected, found), agreement(expected, found, 2 * SCORES[0].limit)


def same_best(expected: Array, found: Array) -> float:
    """The figure of SAME_BEST, of scores or logits a row."""
    return agreement(expected, found, 1e-4)


class TextClassificationExport(TextExport):
    """Sequence classification models."""

    tag: ClassVar[str] = "text-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForSequenceClassification",)
    measures: ClassVar[Sequence[Measure]] = SCORES
    measures_of_all: ClassVar[Sequence[Measure]] = (SAME_BEST,)

    def head(self, graph: Any, source: Source) -> None:
        """The logits as they are."""
        require_output(graph, "logits", self.tag)
        set_outputs(graph, [("logits", "float32", ("batch", source.config.num_labels))])

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """Labels, and the function that the model was trained with."""
        names = labels(source.model, source.config)
        function = default_function(source.config.problem_type, len(names))
        return {**super().task_config(source, outputs), "labels": names, "function": function}

    def samples(self, source: Source) -> Iterator[Json]:
        """Texts."""
        return ({"text": text} for text in sample_texts(source))

    def reference(self, source: Source, model: Any, inputs: Mapping[str, Any]) -> Arrays | None:
        """The logits."""
        return run(model, inputs, "logits")

    def compare(self, source: Source, expected: Arrays, found: Arrays) -> Sequence[float]:
        """Of the scores, with the model's own function."""
        function = FUNCTIONS[default_function(source.config.problem_type, source.config.num_labels)]
        a, b = function(expected["logits"]), function(found["logits"])
        return compare_scores(a, b)

    def compare_all(self, source: Source, expected: Sequence[Arrays], found: Sequence[Arrays]) -> Sequence[float]:
        """How often the best label is the same."""
        return [same_best(*of_both(expected, found, "logits"))]


TASK = TextClassificationExport()
