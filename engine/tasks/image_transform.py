"""A task without a model: an image is resized and encoded anew. An example to copy for any transformation of data.

The work is done in `part`, in a thread; what the rows hold comes back unchanged to `answer`. `task_config` is empty.
EXIF orientation is applied; metadata, colour profiles and transparency do not survive.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image, ImageOps

from engine.errors import InvalidInput
from engine.images.decode import decoded
from engine.images.examples import GRADIENT, LANDSCAPE, PORTRAIT
from engine.tasks import payload as check
from engine.tasks.items import Part
from engine.tasks.media import MediaTask
from engine.tensors import Row

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays

_FORMATS = ("jpeg", "png", "webp")
_FITS = ("contain", "cover", "stretch")
_LONGEST_SIDE = 16_383  # WebP's
_LONGEST_SIDES = {"jpeg": 65_500, "png": 1 << 31, "webp": _LONGEST_SIDE}  # of an image that keeps its size
_QUALITY = 85


class ImageTransform(MediaTask):
    """`{"image": ..., "width": 640}`: the reply holds the image in base64, its size and its format."""

    summary: ClassVar[str] = "Resizes an image and encodes it anew; no model. An example to copy."
    auto_class: ClassVar[str] = ""
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"image": LANDSCAPE, "width": 24},
        {"images": [PORTRAIT, GRADIENT], "width": 32, "height": 32, "fit": "cover", "format": "webp"},
    )
    one: ClassVar[str] = "image"
    many: ClassVar[str] = "images"
    option_names: ClassVar[tuple[str, ...]] = ("width", "height", "fit", "format", "quality")

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`width`, `height` (either keeps the shape), `fit` of both, `format`, `quality` (not of png)."""
        options = {
            "width": check.whole_number(payload, "width", 1, _LONGEST_SIDE),
            "height": check.whole_number(payload, "height", 1, _LONGEST_SIDE),
            "fit": check.choice(payload, "fit", _FITS),
            "format": check.choice(payload, "format", _FORMATS),
            "quality": check.whole_number(payload, "quality", 1, 100) or _QUALITY,
        }
        if payload.get("fit") is not None and (options["width"] is None or options["height"] is None):
            raise InvalidInput("`fit` needs both `width` and `height`")
        return options

    def part(self, field: str, content: bytes, options: Mapping[str, Any]) -> Part:
        """A row with the bytes of the new file; `data` is its width and height."""
        with decoded(content, field, self.limits.max_pixels) as image:
            return self._part(field, image, options)

    def _part(self, field: str, image: Image.Image, options: Mapping[str, Any]) -> Part:
        image.info.clear()  # comments, profiles and a transparent colour, which Pillow would write out again
        image = self._resized(image, options, field)
        if max(image.size) > (longest := _LONGEST_SIDES[options["format"]]):
            raise InvalidInput(
                f"`{field}` has {image.width} x {image.height} pixels, {options['format']} takes {longest} a side; "
                "give `width` or `height`"
            )
        file = io.BytesIO()
        image.save(file, options["format"].upper(), quality=options["quality"])
        return Part([Row({"file": np.frombuffer(file.getvalue(), np.uint8)}, 1)], image.size)

    def _resized(self, image: Image.Image, options: Mapping[str, Any], field: str) -> Image.Image:
        size = width, height = _size(image, options)
        if size == image.size:
            return image
        if max(size) > _LONGEST_SIDE:
            raise InvalidInput(
                f"`{field}` would have {width} x {height} pixels, allowed are {_LONGEST_SIDE} a side; "
                "give a smaller `width` or `height`"
            )
        if width * height > self.limits.max_pixels:
            raise InvalidInput(
                f"`{field}` would have {width} x {height} pixels, allowed are {self.limits.max_pixels} in all "
                "(MAX_PIXELS); give a smaller `width` or `height`"
            )
        if options["fit"] == "cover":
            return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        return image.resize(size, Image.Resampling.LANCZOS)

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """The image and what it is."""
        width, height = part.data
        encoded = base64.b64encode(outputs[0]["file"].tobytes()).decode()
        return {"image": encoded, "format": options["format"], "width": width, "height": height}


def _size(image: Image.Image, options: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height of the result."""
    width, height = options["width"], options["height"]
    if width is None and height is None:
        return image.size
    if width is None or height is None:  # one alone is the whole shape's measure
        width = width or max(1, round(image.width * height / image.height))
        return width, height or max(1, round(image.height * width / image.width))
    if options["fit"] != "contain":
        return width, height
    # The largest of the image's shape within both: ImageOps.contain's, but a pixel at least.
    if image.width * height > image.height * width:
        return width, max(1, round(image.height / image.width * width))
    return max(1, round(image.width / image.height * height)), height


TASK = ImageTransform
