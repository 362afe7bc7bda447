"""Zero-shot classification of images, offline: the two encoders, and how a cosine becomes a score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from export.dual import DualExport, is_dual_model, is_siglip, text_inputs, weight
from export.errors import Refused
from export.images import images
from export.tasks.base import Probe

if TYPE_CHECKING:
    from export.source import Source


class ZeroShotImageClassificationExport(DualExport):
    """CLIP, SigLIP and their relatives."""

    tag: ClassVar[str] = "zero-shot-image-classification"

    def claims(self, root: Path, config: Mapping[str, Any]) -> bool:
        """A model on images and texts."""
        return is_dual_model(root, config)

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """Scale, bias and function."""
        scale = _scale(source)
        if scale is None:
            raise Refused(
                f"{source.model} has no logit_scale, which makes scores of its cosines; choose a model such as CLIP"
            )
        return {
            **super().task_config(source, outputs),
            "scale": scale,
            "bias": weight(source, "logit_bias") or 0.0,
            "function": "sigmoid" if is_siglip(source.config) else "softmax",
        }

    def probes(self, source: Source) -> Iterator[Probe]:
        """Every image with one of the texts, a row each."""
        pictures = list(images())
        for number, (label, text) in enumerate(self.text_probes(source)):
            name, value, image = pictures[number % len(pictures)]
            payload = {"image": value, "candidate_labels": [text], "hypothesis_template": "{}"}
            yield Probe(f"{name}, {label}", payload, [source.processor.inputs(image), text_inputs(source, text)])


def _scale(source: Source) -> float | None:
    """What cosines are multiplied by: CLIP keeps its logarithm, ALIGN its inverse."""
    logarithm = weight(source, "logit_scale")
    if logarithm is not None:
        return exp(logarithm)
    temperature = weight(source, "temperature")
    return 1 / temperature if temperature else None


TASK = ZeroShotImageClassificationExport()
