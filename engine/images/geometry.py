"""From an image to the pixels that a graph reads: resized, cropped or laid on a canvas, always of one size.

What an image processor of transformers does to the numbers (rescaling, mean, deviation, order of channels) is in the
graph: a row is uint8, a quarter of the bytes. That is exact, because the slow processors resize with Pillow in uint8
and calculate afterwards. `image` in the task_config of the manifest holds the fields of Geometry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Self

import numpy as np
from PIL import Image

from engine.errors import BundleError, InvalidInput
from engine.tensors import Array

PIXELS, EXTENT = "pixels", "extent"
"""Inputs of a graph: uint8 (height, width, 3); and, with a canvas, how much of it is image: int32 (height, width)."""

_RESIZES = (None, "exact", "shortest", "bounded", "fit")


@dataclass(frozen=True)
class Geometry:
    """`height` and `width` are what comes out. The other fields say how, in the order in which they apply.

    resize: None; "exact" to `size` (height, width); "shortest": the shorter side becomes `size[0]`, the longer one
    follows; "bounded": the same, but the longer side stays within `size[1]`; "fit": as large as `size` (height, width)
    holds. `resample` is Pillow's number of a filter.
    crop: from the middle, black where the image is smaller. canvas: at the upper left, with zeros beside it; an image
    that is larger is resized to fit.
    """

    height: int
    width: int
    resize: str | None = None
    size: tuple[int, int] = (0, 0)
    resample: int = Image.Resampling.BILINEAR
    crop: bool = False
    canvas: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read `image` of a task_config. Raises BundleError where it names a way of resizing that is none of these."""
        if (resize := config.get("resize")) not in _RESIZES:
            raise BundleError(f"the bundle resizes images by {resize!r}, which this worker does not know; update it")
        values = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        return cls(**{**values, "size": tuple(values.get("size", (0, 0)))})

    def feeds(self, image: Image.Image, field: str, max_pixels: int) -> dict[str, Array]:
        """The inputs that `image`, in RGB, makes. Raises InvalidInput where it is too narrow to be resized."""
        height, width = self.target(image.height, image.width)
        if height * width > max_pixels:
            raise InvalidInput(
                f"`{field}` is {image.width} x {image.height}, so narrow that resizing would make {width} x {height} "
                f"pixels of it, allowed are {max_pixels} in all (MAX_PIXELS); crop it"
            )
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), resample=self.resample)
        pixels = np.asarray(image)
        if self.crop:
            pixels = _center_crop(pixels, self.height, self.width)
        if not self.canvas:
            return {PIXELS: pixels}
        laid = np.zeros((self.height, self.width, 3), np.uint8)
        laid[:height, :width] = pixels
        return {PIXELS: laid, EXTENT: np.array((height, width), np.int32)}

    def target(self, height: int, width: int) -> tuple[int, int]:
        """The size after resizing an image of this size."""
        if self.resize == "exact":
            return self.size
        if self.resize == "shortest":
            return _shortest(height, width, self.size[0])
        if self.resize == "fit":  # as get_image_size_for_max_height_width of DETR's image processor
            ratio = min(self.size[0] / height, self.size[1] / width)
            height, width = max(1, int(height * ratio)), max(1, int(width * ratio))
        if self.resize == "bounded":  # of an image 1 pixel wide, where DETR's processor fails, one is left
            height, width = (max(1, side) for side in _bounded(height, width, *self.size))
        if self.canvas and (height > self.height or width > self.width):
            ratio = min(self.height / height, self.width / width)
            height, width = max(1, int(height * ratio)), max(1, int(width * ratio))
        return height, width


def _shortest(height: int, width: int, edge: int) -> tuple[int, int]:
    """As transformers' get_resize_output_image_size."""
    if width <= height:
        return int(edge * height / width), edge
    return edge, int(edge * width / height)


def _bounded(height: int, width: int, edge: int, longest: int) -> tuple[int, int]:
    """As get_size_with_aspect_ratio of DETR's image processor: rounding differs once the longer side is the limit."""
    short, long = sorted((height, width))
    exact: float = edge
    if float(long) / float(short) * edge > longest:
        exact = longest * float(short) / float(long)
        edge = round(exact)
    if short == edge:
        return height, width
    if width < height:
        return int(exact * height / width), edge
    return edge, int(exact * width / height)


def _center_crop(pixels: Array, height: int, width: int) -> Array:
    """As transformers' center_crop, which rounds one way where it cuts and the other where it pads."""
    found_height, found_width = pixels.shape[:2]
    top, left = (found_height - height) // 2, (found_width - width) // 2
    if top < 0 or left < 0:
        above, before = ceil(max(0, height - found_height) / 2), ceil(max(0, width - found_width) / 2)
        padded = np.zeros((max(height, found_height), max(width, found_width), 3), np.uint8)
        padded[above : above + found_height, before : before + found_width] = pixels
        pixels, top, left = padded, max(0, top + above), max(0, left + before)
    cut = pixels[top : top + height, left : left + width]
    return cut if cut.shape == pixels.shape else cut.copy()  # a view would keep the whole image
