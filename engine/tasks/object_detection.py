"""Objects on an image: label, score and box in pixels of the image as it was sent, turned upright.

`task_config` of the manifest: image (engine/images/geometry.py), labels (names, in the order of the classes). The graph
gives a score, a class and relative corners for every query, in the order in which they are answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.images import examples
from engine.images.task import ImageTask
from engine.tasks import payload as check

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tasks.items import Part
    from engine.tensors import Arrays

_THRESHOLD = 0.5  # the pipeline's
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ENTRY = len('{"score":0.0,"label":"","box":{"xmin":0,"ymin":0,"xmax":0,"ymax":0}},')


class ObjectDetection(ImageTask):
    """`{"image": ...}` or `{"images": [...]}`."""

    summary: ClassVar[str] = "Objects on an image: label, score and box of each, in pixels."
    auto_class: ClassVar[str] = "AutoModelForObjectDetection"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"image": examples.LANDSCAPE},
        {"images": [examples.PORTRAIT, examples.GRADIENT], "threshold": 0.1},
    )
    option_names: ClassVar[tuple[str, ...]] = ("threshold",)
    fewer: ClassVar[str] = "raise `threshold`, or send fewer images at once"

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`threshold`: the score that an object is above."""
        return {"threshold": check.number(payload, "threshold", 0.0, 1.0, _THRESHOLD)}

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """`[{"score": ..., "label": ..., "box": {"xmin": ..., ...}}, ...]`; corners are cut to whole pixels."""
        height, width = part.data
        scores, classes, boxes = (outputs[0][name] for name in ("scores", "classes", "boxes"))
        corners = (boxes * np.array([width, height, width, height], np.float32)).astype(np.int32)
        return [
            {
                "score": float(scores[index]),
                "label": self.config["labels"][classes[index]],
                "box": dict(zip(_CORNERS, corners[index].tolist(), strict=True)),
            }
            for index in np.flatnonzero(scores > np.float32(options["threshold"]))
        ]

    def least_bytes(self, answer: Json) -> int:
        """Every query is an object where `threshold` is 0."""
        return _ENTRY * len(answer)


TASK = ObjectDetection
