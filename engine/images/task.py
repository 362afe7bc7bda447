"""Bases of the tasks on images: every image is decoded, and makes one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from engine.config import Limits
from engine.errors import AnswerTooLarge
from engine.images.decode import decoded
from engine.images.geometry import Geometry
from engine.tasks.items import Part, Request
from engine.tasks.media import MediaTask
from engine.tensors import Row

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from engine.tasks.base import Json
    from engine.tensors import Arrays

MOST_REPLY_BYTES = 100_000_000  # several times what RunPod takes
A_NUMBER = 10  # bytes in a reply, more or less
_PIXELS = 1 << 13
"""Of an answer as large as an image, which are drawn while a short answer is put together."""


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
        return cls(bundle.manifest.task_config, limits).answered_by(bundle)

    def part(self, field: str, content: bytes, options: Mapping[str, Any]) -> Part:
        """One row; `data` is the image's own size as (height, width)."""
        with decoded(content, field, self.limits.max_pixels) as image:
            feeds = self.geometry.feeds(image, field, self.limits.max_pixels)
            return Part([Row(feeds, 1, self.graph)], (image.height, image.width))


class MapTask(ImageTask):
    """Base of those whose answers are as large as the images, of which a few kB may have millions of pixels."""

    def bytes_a_pixel(self, options: Mapping[str, Any]) -> float:
        """What a pixel takes in an answer where that can be told before there is one."""
        return 0

    def parts(self, request: Request) -> list[Part]:
        """Raises AnswerTooLarge also where the answers would be."""
        parts = super().parts(request)
        _refuse(_pixels(parts) * self.bytes_a_pixel(request.options))
        return parts

    def answers_in(self, request: Request, rows: int) -> int:
        """A picture for each row, which takes as long as many answers of another task."""
        return rows + _pixels(request.parts) // _PIXELS

    def answers(self, request: Request, outputs: Sequence[Arrays]) -> Iterator[Json]:
        """Raises AnswerTooLarge where they are too large together."""
        held = 0
        for answer in super().answers(request, outputs):
            held += _held(answer)
            _refuse(held)
            yield answer


def _pixels(parts: Sequence[Part]) -> int:
    return sum(height * width for height, width, *_ in (part.data for part in parts))


def _refuse(size: float) -> None:
    if size > MOST_REPLY_BYTES:
        raise AnswerTooLarge(
            f"the reply would have more than {MOST_REPLY_BYTES} bytes; send fewer images, or smaller ones", int(size)
        )


def _held(answer: Json) -> int:
    """About as many bytes as it will have in a reply: of strings, and of numbers where they are many."""
    if isinstance(answer, dict | list):
        return sum(map(_held, answer.values() if isinstance(answer, dict) else answer))
    if isinstance(answer, np.ndarray):
        return answer.size * A_NUMBER
    return len(answer) if isinstance(answer, str) else A_NUMBER
