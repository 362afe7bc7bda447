"""Detectors, offline. The graph gives a score, a class and relative corners for every query instead of all logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from export.gate.measures import Measure
from export.images import ImageExport
from export.tasks.base import labels

if TYPE_CHECKING:
    from engine.tensors import Array, Arrays
    from export.source import Source

_CLEAR = 1 / 3
"""Objects with at least this share of the best score are looked for among what the bundle found."""


class ObjectDetectionExport(ImageExport):
    """DETR and its relatives, YOLOS."""

    tag: ClassVar[str] = "object-detection"
    heads: ClassVar[tuple[str, ...]] = ("ForObjectDetection",)
    measures: ClassVar[Sequence[Measure]] = (
        Measure("difference", 1e-4, 0.1, column="score", half_limit=0.02),
        # Corners relative to the image; of the nearest object of the same class.
        Measure("box_difference", 1e-3, 0.05, column="box", half_limit=0.02),
        Measure("overlap", 0.99, 0.8, at_least=True, column="overlap", half_limit=0.9),
    )

    def answer(self, source: Source, model: Any, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """As the processor's own post_process_object_detection, without the threshold and the size of the image."""
        found = model(**values)
        scores, classes, boxes = _best(source, found.logits, _corners(found.pred_boxes))
        return {"scores": scores, "classes": classes, "boxes": boxes}

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """Labels; names that config.json leaves out are never answered."""
        return {**super().task_config(source, outputs), "labels": _names(source)}

    def reference(self, source: Source, model: Any, inputs: Mapping[str, Any]) -> Arrays | None:
        """What the processor itself makes of the model's answer."""
        (found,) = source.processor.processor.post_process_object_detection(model(**inputs), threshold=-1.0)
        return {"scores": found["scores"].numpy(), "classes": found["labels"].numpy(), "boxes": found["boxes"].numpy()}

    def compare(self, source: Source, expected: Arrays, found: Arrays) -> Sequence[float]:
        """The largest difference of a score; and of clear objects the worst box, and the least overlap."""
        difference = np.abs(np.sort(expected["scores"]) - np.sort(found["scores"])).max()
        clear = np.flatnonzero(expected["scores"] >= _CLEAR * expected["scores"].max())
        pairs = [_nearest(expected, int(index), found) for index in clear]
        return float(difference), max(box for box, _ in pairs), min(overlap for _, overlap in pairs)


def _corners(boxes: Any) -> Any:
    import torch

    x, y, width, height = boxes.unbind(-1)
    return torch.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], dim=-1)


def _best(source: Source, logits: Any, boxes: Any) -> tuple[Any, Any, Any]:
    """Scores, classes and boxes in the order of the pipeline.

    DETR and YOLOS have a class for "nothing" and answer query by query; the later ones let every class of every query
    compete, and answer with the best.
    """
    import torch

    taken = signature(source.processor.processor.post_process_object_detection).parameters
    if "top_k" not in taken and "use_focal_loss" not in taken:
        scores, classes = logits.softmax(-1)[..., :-1].max(-1)
        return scores, classes, boxes
    queries, names = logits.shape[1], logits.shape[2]
    count = min(taken["top_k"].default, queries * names) if "top_k" in taken else queries
    scores, places = torch.topk(logits.sigmoid().flatten(1), count, dim=1)
    queries_of_best = torch.div(places, names, rounding_mode="floor")
    return scores, places % names, torch.gather(boxes, 1, queries_of_best.unsqueeze(-1).repeat(1, 1, 4))


def _names(source: Source) -> list[str]:
    """The labels; DETR's on the Hub have gaps, at numbers that COCO gave up."""
    known = {int(number): str(name) for number, name in (source.config.id2label or {}).items()}
    if sorted(known) == list(range(len(known))):
        return labels(source.model, source.config)
    return [known.get(number, "N/A") for number in range(max(known) + 1)]


def _nearest(expected: Arrays, index: int, found: Arrays) -> tuple[float, float]:
    """Of the object found that is like the expected one: the difference of their corners, and their overlap."""
    same = found["boxes"][found["classes"] == expected["classes"][index]]
    if not len(same):
        return float("inf"), 0.0
    box = expected["boxes"][index]
    differences = np.abs(same - box).max(axis=1)
    return float(differences.min()), _overlap(box, same[int(differences.argmin())])


def _overlap(a: Array, b: Array) -> float:
    """Intersection over union; 1 for two boxes without an area at the same place."""
    inner = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner
    return float(inner / union) if union > 0 else float(np.allclose(a, b, atol=1e-6))


TASK = ObjectDetectionExport()
