"""Semantic segmentation, offline. The graph gives logits at the model's own resolution.

The map of best classes would be smaller, but the pipeline enlarges the logits to the size of the image before it takes
the best, and that size is another one for every image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from export.errors import Refused
from export.gate.measures import Measure, agreement
from export.images import UNUSED_OF_DPT, ImageExport
from export.tasks.base import Layout, labels

if TYPE_CHECKING:
    from pathlib import Path

    from engine.tensors import Arrays
    from export.recipe import Recipe
    from export.source import Source


class ImageSegmentationExport(ImageExport):
    """SegFormer, and others with a semantic head."""

    tag: ClassVar[str] = "image-segmentation"
    heads: ClassVar[tuple[str, ...]] = ("ForSemanticSegmentation",)
    may_miss: ClassVar[tuple[str, ...]] = UNUSED_OF_DPT
    measures: ClassVar[Sequence[Measure]] = (
        # Of the logits, relative to the largest.
        Measure("difference", 1e-4, 0.1, column="difference", half_limit=0.02),
        # Places of the graph's own map with the same best class; where the two best are nearly equal, either may be.
        Measure("agreement", 1.0, 0.95, at_least=True, column="same class", half_limit=0.98),
    )

    def processors(self, folder: Path, model: str, layout: Layout, recipe: Recipe) -> Mapping[str, Any]:
        """The image processor; one that the pipeline would take for instances or panoptic masks is refused."""
        found = super().processors(folder, model, layout, recipe)
        processor = found["processor"].processor
        others = ("post_process_panoptic_segmentation", "post_process_instance_segmentation")
        if any(hasattr(processor, name) for name in others) or not hasattr(
            processor, "post_process_semantic_segmentation"
        ):
            raise Refused(
                f"{model}'s {type(processor).__name__} is not for semantic segmentation alone, which is what a bundle "
                "can do; choose a model such as SegFormer"
            )
        return found

    def answer(self, source: Source, model: Any, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The logits (batch, classes, height, width)."""
        return {"logits": model(**values).logits}

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """Labels."""
        return {**super().task_config(source, outputs), "labels": labels(source.model, source.config)}

    def compare(self, source: Source, expected: Arrays, found: Arrays) -> Sequence[float]:
        """Difference of the logits, and agreement of the best classes."""
        a, b = expected["logits"], found["logits"]
        largest = float(np.abs(a).max()) or 1.0
        difference = float(np.abs(a - b).max()) / largest
        margin = 2 * self.measures[0].limit * largest
        return difference, agreement(np.moveaxis(a, 0, -1), np.moveaxis(b, 0, -1), margin)


TASK = ImageSegmentationExport()
