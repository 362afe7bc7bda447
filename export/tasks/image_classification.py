"""Classifiers of images, offline. Only logits leave the graph; what makes scores of them a request may say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.text.scores import FUNCTIONS
from export.images import ImageExport
from export.measures import SAME_BEST, SCORES, Measure, compare_scores, same_best
from export.tasks.base import labels

if TYPE_CHECKING:
    from engine.tensors import Arrays
    from export.source import Source


class ImageClassificationExport(ImageExport):
    """Models with a classifier on top."""

    tag: ClassVar[str] = "image-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForImageClassification", "ForImageClassificationWithTeacher")
    measures: ClassVar[Sequence[Measure]] = SCORES
    measures_of_all: ClassVar[Sequence[Measure]] = (SAME_BEST,)

    def answer(self, source: Source, model: Any, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The logits."""
        return {"logits": model(**values).logits}

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """Labels, and the function that the model was trained with."""
        names = labels(source.model, source.config)
        return {**super().task_config(source, outputs), "labels": names, "function": _function(source.config)}

    def compare(self, source: Source, expected: Arrays, found: Arrays) -> Sequence[float]:
        """Of the scores, with the model's own function."""
        function = FUNCTIONS[_function(source.config)]
        return compare_scores(function(expected["logits"]), function(found["logits"]))

    def compare_all(self, source: Source, expected: Sequence[Arrays], found: Sequence[Arrays]) -> Sequence[float]:
        """How often the best label is the same."""
        return [same_best(expected, found, "logits")]


def _function(config: Any) -> str:
    """As the pipeline reads it, which differs from that on texts: it knows no regression."""
    return "sigmoid" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "softmax"


TASK = ImageClassificationExport()
