"""Classifiers of texts, offline. Only logits leave the graph; which function makes scores of them a request may say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.text.scores import FUNCTIONS, default_function
from export.measures import SAME_BEST, SCORES, Measure, compare_scores, same_best
from export.nodes import require_output, set_outputs
from export.tasks.base import labels
from export.text import TextExport, run, sample_texts

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays
    from export.source import Source


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
        return compare_scores(function(expected["logits"]), function(found["logits"]))

    def compare_all(self, source: Source, expected: Sequence[Arrays], found: Sequence[Arrays]) -> Sequence[float]:
        """How often the best label is the same."""
        return [same_best(expected, found, "logits")]


TASK = TextClassificationExport()
