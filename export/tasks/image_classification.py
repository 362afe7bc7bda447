"""Classifiers of images, offline. Only logits leave the graph; what makes scores of them a request may say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from export.gate.judged import LabelsExport
from export.images import ImageExport
from export.tasks.base import labels

if TYPE_CHECKING:
    from export.source import Source


class ImageClassificationExport(LabelsExport, ImageExport):
    """Models with a classifier on top."""

    tag: ClassVar[str] = "image-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForImageClassification", "ForImageClassificationWithTeacher")

    def answer(self, source: Source, model: Any, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The logits."""
        return {"logits": model(**values).logits}

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """Labels, and the function that the model was trained with."""
        names = labels(source.model, source.config)
        return {**super().task_config(source, outputs), "labels": names, "function": self.function(source)}

    def function(self, source: Source) -> str:
        """As the pipeline reads it, which differs from that on texts: it knows no regression."""
        config = source.config
        return "sigmoid" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "softmax"


TASK = ImageClassificationExport()
