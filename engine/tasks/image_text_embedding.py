"""Embeddings of images and of texts in one space (CLIP, SigLIP): for a search of the ones by the others.

The Hub has no tag for it; transformers calls it get_image_features and get_text_features. `task_config` of the
manifest: image (engine/images/geometry.py), max_length (tokens of a text).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine import vectors
from engine.errors import InvalidInput
from engine.images import examples
from engine.images.dual import IMAGE, TEXT, DualTask
from engine.tasks import payload as check
from engine.tasks.items import ItemsTask, Part, Request

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays

_FIELDS = ("image", "images", "inputs", "text", "texts")


class _Texts(ItemsTask):
    """What a payload of texts is checked by."""

    option_names: ClassVar[tuple[str, ...]] = vectors.OPTIONS

    def item(self, value: Any, name: str, payload: dict[str, Any]) -> Any:
        return check.string(value, name, self.limits.max_chars)

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        return {"texts": True, **vectors.options(payload, normalize=True)}


class ImageTextEmbedding(DualTask):
    """`image`, `images`, `text` or `texts`: one of them a job."""

    summary: ClassVar[str] = "Embeddings of images and of texts in one space (CLIP, SigLIP)."
    auto_class: ClassVar[str] = "AutoModelForZeroShotImageClassification"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"image": examples.LANDSCAPE},
        {"text": "A picture of simple shapes."},
        {"images": [examples.PORTRAIT, examples.GRADIENT], "encoding_format": "base64"},
        {"texts": ["a cat on a mat", "London at night"], "normalize": False},
    )
    option_names: ClassVar[tuple[str, ...]] = vectors.OPTIONS

    def parse(self, payload: Json) -> Request:
        """Check the job's input. Raises InvalidInput."""
        payload = check.without_nulls(check.require_object(payload), _FIELDS)
        if not any(name in payload for name in _FIELDS):
            check.refuse_unknown(payload, (*_FIELDS, *self.option_names), check.OF_EVERY_JOB)
            raise InvalidInput("`input` needs one of `image`, `images`, `text` and `texts`")
        if "text" in payload or "texts" in payload:
            return _Texts(self.limits).parse(payload)
        return super().parse(payload)

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`normalize` and `encoding_format`."""
        return {"texts": False, **vectors.options(payload, normalize=True)}

    def parts(self, request: Request) -> list[Part]:
        """A row an item. Raises AnswerTooLarge, before one is fetched, for more vectors than RunPod's queue takes."""
        graph, things = (TEXT, "texts") if request.options["texts"] else (IMAGE, "images")
        numbers = len(request.items) * vectors.numbers_of(self.outputs.get(graph, ()))
        vectors.refuse_many(numbers, request.options, self.limits, things, may_stream=not request.single)
        if not request.options["texts"]:
            return super().parts(request)
        return [Part([row]) for row in self.text_rows(request.items, request.spent.refuse_stopped)]

    def postprocess(self, request: Request, outputs: Sequence[Arrays]) -> Json:
        """`{"embedding": ..., "dimensions": ...}`, or `embeddings`."""
        return vectors.reply(outputs, request.options, request.single)


TASK = ImageTextEmbedding
