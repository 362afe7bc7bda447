"""Labels and scores of an image.

`task_config` of the manifest: image (engine/images/geometry.py), labels (names, in the order of the logits), function
(softmax, sigmoid or none: the default of `function_to_apply`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.images import examples
from engine.images.task import ImageTask
from engine.text.scores import OPTIONS, best_labels, refuse_many, score_options

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tasks.items import Part, Request
    from engine.tensors import Arrays

_TOP_K = 5  # the pipeline's


class ImageClassification(ImageTask):
    """`{"image": ...}` or `{"images": [...]}`."""

    summary: ClassVar[str] = "Labels and scores of an image: what is on it, or several labels at once."
    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"image": examples.LANDSCAPE},
        {"images": [examples.PORTRAIT, examples.GRADIENT], "top_k": 2},
        {"image": examples.GRADIENT, "function_to_apply": "sigmoid", "top_k": None},
    )
    option_names: ClassVar[tuple[str, ...]] = OPTIONS

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`top_k`: five labels unless it says otherwise; null gives all."""
        return score_options(payload, self.config["labels"], function=self.config["function"], top_k=_TOP_K)

    def parts(self, request: Request) -> list[Part]:
        """A row an item. Raises AnswerTooLarge before there is one."""
        refuse_many(len(request.items), self.config["labels"], request.options["top_k"], self.fewer)
        return super().parts(request)

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """`[{"label": ..., "score": ...}, ...]`, the best first."""
        return best_labels(outputs[0]["logits"], self.config["labels"], options)


TASK = ImageClassification
