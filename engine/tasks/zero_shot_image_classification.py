"""Which of the labels that a job brings fits an image, by a model that compares images with texts (CLIP, SigLIP).

`task_config` of the manifest: image (engine/images/geometry.py), max_length (tokens of a text), function (softmax over
the labels, or sigmoid: each on its own), scale and bias (from a cosine to what the function takes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.errors import InvalidInput
from engine.images import examples
from engine.images.dual import DualTask
from engine.tasks import payload as check
from engine.text.scores import FUNCTIONS, refuse_many
from engine.vectors import OUTPUT

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tasks.items import Request
    from engine.tensors import Array, Arrays, Row

_TEMPLATE = "This is a photo of {}."  # the pipeline's
_MOST_CHARS = 1 << 22
"""Of the texts of all labels: a template of a few kB, and labels of one, would be gigabytes."""


class ZeroShotImageClassification(DualTask):
    """`{"image": ..., "candidate_labels": [...]}` or `images`."""

    summary: ClassVar[str] = "Scores of labels that the job brings, for an image (CLIP, SigLIP)."
    auto_class: ClassVar[str] = "AutoModelForZeroShotImageClassification"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"image": examples.LANDSCAPE, "candidate_labels": ["shapes", "a cat on a mat"]},
        {
            "images": [examples.PORTRAIT, examples.GRADIENT],
            "candidate_labels": ["night", "a test of colours", "London"],
            "hypothesis_template": "a picture of {}",
        },
    )
    option_names: ClassVar[tuple[str, ...]] = ("candidate_labels", "hypothesis_template")
    fewer: ClassVar[str] = "send fewer images or labels at once, or ask for a `stream`"
    first_part_alone: ClassVar[bool] = True
    """It computes the labels, for all parts."""

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`candidate_labels`, and `hypothesis_template`, in which {} stands for a label."""
        limits = self.limits
        if "candidate_labels" not in payload:
            raise InvalidInput("`input` needs `candidate_labels`, a list of strings")
        labels = check.texts(payload["candidate_labels"], "candidate_labels", limits.max_items, limits.max_chars)
        template = check.template(payload, "hypothesis_template", _TEMPLATE, limits.max_chars)
        if len(template) == 1:
            raise InvalidInput("`hypothesis_template` must hold {} where the label goes")
        # Many places for a long label: a small payload would become gigabytes.
        around, places = sum(map(len, template)), len(template) - 1
        longest = around + places * max(map(len, labels))
        if longest > limits.max_chars:
            raise InvalidInput(
                f"`hypothesis_template` with a label has up to {longest} characters, allowed are {limits.max_chars}"
            )
        total, most = around * len(labels) + places * sum(map(len, labels)), max(limits.max_chars, _MOST_CHARS)
        if total > most:
            raise InvalidInput(
                f"`hypothesis_template` with every label has {total} characters in all, allowed are {most}; shorten it"
            )
        return {"labels": labels, "template": template, "directions": []}

    def preprocess(self, request: Request) -> Sequence[Row]:
        """The images, then the labels in their texts, unless a part of the job has been answered by then."""
        labels, directions = request.options["labels"], request.options["directions"]
        refuse_many(len(request.items), labels, len(labels), self.fewer)
        rows = super().preprocess(request)
        if directions:
            return rows
        template = request.options["template"]
        return [*rows, *self.text_rows([label.join(template) for label in labels], request.spent.refuse_stopped)]

    def postprocess(self, request: Request, outputs: Sequence[Arrays]) -> Json:
        """`[{"score": ..., "label": ...}, ...]` an image, the best first."""
        count, directions = len(request.items), request.options["directions"]
        if len(outputs) > count:
            directions[:] = [_directions(outputs[count:])]  # all parts of a job have the same list
        images, texts = _directions(outputs[:count]), directions[0]
        logits = images @ texts.T * np.float32(self.config["scale"]) + np.float32(self.config["bias"])
        answers = [self._answer(scores, request) for scores in FUNCTIONS[self.config["function"]](logits)]
        return answers[0] if request.single else answers

    def _answer(self, scores: Array, request: Request) -> Json:
        best = (-scores).argsort(kind="stable")
        return [{"score": float(scores[index]), "label": request.options["labels"][index]} for index in best]


def _directions(outputs: Sequence[Arrays]) -> Array:
    vectors = np.stack([row[OUTPUT] for row in outputs])
    found: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


TASK = ZeroShotImageClassification
