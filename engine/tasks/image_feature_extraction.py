"""Image embeddings: one vector an image, or one a patch. Pooling is in the graph.

`task_config` of the manifest: image (engine/images/geometry.py), pooling (pooler, cls, mean or none).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine import vectors
from engine.images import examples
from engine.images.task import ImageTask

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tasks.items import Part, Request
    from engine.tensors import Arrays


class ImageFeatureExtraction(ImageTask):
    """`{"image": ...}` or `{"images": [...]}`."""

    summary: ClassVar[str] = "Image embeddings: the model's pooled vector of an image, or a vector for every patch."
    auto_class: ClassVar[str] = "AutoModel"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"image": examples.LANDSCAPE},
        {"images": [examples.PORTRAIT, examples.GRADIENT], "normalize": True, "encoding_format": "base64"},
    )
    option_names: ClassVar[tuple[str, ...]] = vectors.OPTIONS

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`normalize`, which the pipeline does not do, and `encoding_format`."""
        return vectors.options(payload, normalize=False)

    def parts(self, request: Request) -> list[Part]:
        """A row an image. Raises AnswerTooLarge, before one is fetched, for more vectors than RunPod's queue takes."""
        numbers = len(request.items) * vectors.numbers_of(self.outputs.get(self.graph, ()))
        may_stream = not request.single
        vectors.refuse_many(numbers, request.options, self.limits, self.many, may_stream=may_stream, may_be_zeros=True)
        return super().parts(request)

    def postprocess(self, request: Request, outputs: Sequence[Arrays]) -> Json:
        """`{"embedding": ..., "dimensions": ...}`, or `embeddings`."""
        return vectors.reply(outputs, request.options, request.single)


TASK = ImageFeatureExtraction
