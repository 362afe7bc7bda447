"""Base of the tasks on images: every image is decoded, and makes one row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from engine.config import Limits
from engine.images.decode import decode
from engine.images.geometry import Geometry
from engine.tasks.items import Part
from engine.tasks.media import MediaTask
from engine.tensors import Row

if TYPE_CHECKING:
    from PIL.Image import Image

    from engine.bundle import Bundle


class ImageTask(MediaTask):
    """`{"image": ...}` or `{"images": [...]}`, a row each."""

    one: ClassVar[str] = "image"
    many: ClassVar[str] = "images"
    graph: ClassVar[str] = "model"

    def __init__(self, config: Mapping[str, Any], limits: Limits) -> None:
        super().__init__(limits)
        self.config = config
        self.geometry = Geometry.from_config(config["image"])

    @classmethod
    def from_bundle(cls, bundle: Bundle, limits: Limits) -> Self:
        """Read the task_config that the subclass documents."""
        return cls(bundle.manifest.task_config, limits)

    def part(self, field: str, content: bytes, options: Mapping[str, Any]) -> Part:
        """One row; `data` is the image's own size as (height, width)."""
        image: Image = decode(content, field, self.limits.max_pixels)
        feeds = self.geometry.feeds(image, field, self.limits.max_pixels)
        return Part([Row(feeds, 1, self.graph)], (image.height, image.width))
