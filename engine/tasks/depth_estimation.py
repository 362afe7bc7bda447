"""How far away every pixel of an image is, in the model's own measure (metres, or inverse and relative).

`task_config` of the manifest: image (engine/images/geometry.py). The graph gives the depths at its own resolution.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.images import examples
from engine.images.maps import enlarge, png
from engine.images.task import A_NUMBER, MapTask
from engine.tasks import payload as check

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tasks.items import Part
    from engine.tensors import Array, Arrays

_FORMATS = {"none": 0, "base64": 16 / 3, "float": A_NUMBER}
"""And what a pixel takes in each: base64 writes 3 bytes as 4."""


class DepthEstimation(MapTask):
    """`{"image": ...}` or `{"images": [...]}`."""

    summary: ClassVar[str] = "The depth of every pixel of an image, as a grey picture and as numbers."
    auto_class: ClassVar[str] = "AutoModelForDepthEstimation"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"image": examples.LANDSCAPE},
        {"images": [examples.PORTRAIT, examples.GRADIENT], "predicted_depth": "base64"},
    )
    option_names: ClassVar[tuple[str, ...]] = ("predicted_depth",)

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`predicted_depth`: whether the numbers come as well; a reply may have no more than some MB."""
        return {"predicted_depth": check.choice(payload, "predicted_depth", tuple(_FORMATS))}

    def bytes_a_pixel(self, options: Mapping[str, Any]) -> float:
        """Of the numbers."""
        return _FORMATS[options["predicted_depth"]]

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """`{"depth": PNG in base64, "height", "width", "min", "max"}`: 0 is the smallest depth and 255 the largest.

        With `predicted_depth` also the numbers, rows of an image: nested lists, or little-endian float32 in base64.
        """
        depth = enlarge(outputs[0]["predicted_depth"], *part.data)
        low, high = float(depth.min()), float(depth.max())
        reply = {"depth": _grey(depth), "height": part.data[0], "width": part.data[1], "min": low, "max": high}
        if options["predicted_depth"] == "float":
            reply["predicted_depth"] = depth
        elif options["predicted_depth"] == "base64":
            reply["predicted_depth"] = base64.b64encode(depth.astype("<f4").tobytes()).decode()
        return reply


def _grey(depth: Array) -> str:
    """As the pipeline draws it; a flat depth, by which it would divide 0, is black."""
    span = depth.max() - depth.min()
    shares = (depth - depth.min()) / (span if span > 0 else np.float32(1))
    return png((shares * 255).astype(np.uint8))


TASK = DepthEstimation
