"""Base of the tasks on images: the items are images in one of the forms of media, each makes one row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from engine.config import Limits
from engine.images.decode import decode
from engine.images.geometry import Geometry
from engine.tasks import media
from engine.tasks.items import ItemsTask, Part, Request
from engine.tensors import Row

if TYPE_CHECKING:
    from PIL.Image import Image

    from engine.bundle import Bundle


class ImageTask(ItemsTask):
    """One row an image; an item is the name of its field and what the field holds."""

    one: ClassVar[str] = "image"
    many: ClassVar[str] = "images"
    noun: ClassVar[str] = media.FORMS
    blocking: ClassVar[bool] = True
    """An image may have to be fetched."""
    graph: ClassVar[str] = "model"

    def __init__(self, config: Mapping[str, Any], limits: Limits) -> None:
        super().__init__(limits)
        self.config = config
        self.geometry = Geometry.from_config(config["image"])

    @classmethod
    def from_bundle(cls, bundle: Bundle, limits: Limits) -> Self:
        """Read the task_config that the subclass documents."""
        return cls(bundle.manifest.task_config, limits)

    def item(self, value: Any, name: str, payload: dict[str, Any]) -> Any:
        """Any string; what it holds is looked at in `parts`, off the event loop."""
        return name, media.require(value, name)

    def parts(self, request: Request) -> list[Part]:
        """A row an image; `data` is the image's own size as (height, width). Raises InvalidInput or Unreachable."""
        contents = media.each_bytes_of(request.items, self.limits, request.spent)
        room, parts = media.Room(self.limits), []
        for (field, _), content in zip(request.items, contents, strict=True):
            parts.append(self._part(field, content))
            room.take(parts[-1].rows, field)
        return parts

    def _part(self, field: str, content: bytes) -> Part:
        image: Image = decode(content, field, self.limits.max_pixels)
        feeds = self.geometry.feeds(image, field, self.limits.max_pixels)
        return Part([Row(feeds, 1, self.graph)], (image.height, image.width))
