"""Labels and scores of an image.

`task_config` of the manifest: image (engine/images/geometry.py), labels (names, in the order of the logits), function
(softmax, sigmoid or none: the default of `function_to_apply`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.images import examples
from engine.images.task import ImageTask
from engine.tasks import payload as check
from engine.text.scores import FUNCTIONS, best_labels

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tasks.items import Part
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
    option_names: ClassVar[tuple[str, ...]] = ("top_k", "function_to_apply")

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`top_k`: null gives all labels."""
        names = [self.config["function"], *(name for name in FUNCTIONS if name != self.config["function"])]
        labels = len(self.config["labels"])
        return {
            "top_k": min(labels, check.whole_number({"top_k": _TOP_K, **payload}, "top_k", 1, 1_000_000) or labels),
            "function": check.choice(payload, "function_to_apply", names),
        }

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """`[{"label": ..., "score": ...}, ...]`, the best first."""
        return best_labels(outputs[0]["logits"], self.config["labels"], options["function"], options["top_k"])


TASK = ImageClassification
