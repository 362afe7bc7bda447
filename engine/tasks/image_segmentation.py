"""Which pixels of an image belong to which class.

`task_config` of the manifest: image (engine/images/geometry.py), labels (names, in the order of the logits). The graph
gives logits at its own resolution; enlarging them to the image's size depends on that size and happens here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.images import examples
from engine.images.maps import class_map, png, run_lengths
from engine.images.task import MapTask
from engine.tasks import payload as check

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tasks.items import Part, Request
    from engine.tensors import Array, Arrays

_FORMATS = ("png", "rle")


class ImageSegmentation(MapTask):
    """`{"image": ...}` or `{"images": [...]}`."""

    summary: ClassVar[str] = "A mask for every class on an image (semantic segmentation)."
    auto_class: ClassVar[str] = "AutoModelForSemanticSegmentation"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"image": examples.LANDSCAPE},
        {"images": [examples.PORTRAIT, examples.GRADIENT], "mask_format": "rle"},
    )
    option_names: ClassVar[tuple[str, ...]] = ("mask_format",)

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`mask_format`: how a mask is written."""
        return {"mask_format": check.choice(payload, "mask_format", _FORMATS)}

    def parts(self, request: Request) -> list[Part]:
        """As in the base class; `data` also has what ends the work of a job that was stopped."""
        parts = super().parts(request)
        for part in parts:
            part.data = (*part.data, request.spent.refuse_stopped)
        return parts

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """`[{"score": null, "label": ..., "mask": ...}, ...]`, a class that has a pixel each, in their order.

        A mask in PNG is grey, 255 inside and 0 outside, in base64. In rle it is `{"size": [height, width], "counts":
        [...]}`: row by row the lengths of runs, outside first.
        """
        height, width, refuse_stopped = part.data
        found = class_map(outputs[0]["logits"], height, width, refuse_stopped)
        write = _png if options["mask_format"] == "png" else _rle
        masks = []
        for index in np.unique(found):
            refuse_stopped()  # an image may take minutes
            masks.append({"score": None, "label": self.config["labels"][index], "mask": write(found == index)})
        return masks


def _png(mask: Array) -> Json:
    return png(mask.astype(np.uint8) * np.uint8(255))


def _rle(mask: Array) -> Json:
    return {"size": list(mask.shape), "counts": run_lengths(mask)}


TASK = ImageSegmentation
