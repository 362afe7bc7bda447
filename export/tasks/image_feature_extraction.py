"""Image embeddings, offline: pooling goes into the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.vectors import OUTPUT
from export.command.said import quiet
from export.errors import Refused
from export.gate.judged import VectorsExport
from export.images import ImageExport, is_image_model
from export.source import weight_names
from export.tasks.base import Layout

if TYPE_CHECKING:
    from pathlib import Path

    from engine.tensors import Arrays
    from export.recipe import Recipe
    from export.source import Source
    from export.tracing.torch_onnx import Traced

_CHANNELS_LAST = ("dinat", "edgetam_vision_model", "nat", "sam2_hiera_det_model", "sam2_vision_model")
"""Architectures whose maps are (height, width, channels); all others' are (channels, height, width)."""


class ImageFeatureExtractionExport(VectorsExport, ImageExport):
    """Models without a head."""

    tag: ClassVar[str] = "image-feature-extraction"
    options: ClassVar[tuple[str, ...]] = ("image_size", "pooling")
    poolings: ClassVar[tuple[str, ...]] = ("pooler", "cls", "mean", "none")
    may_miss: ClassVar[tuple[str, ...]] = ("pooler",)

    def claims(self, root: Path, config: Mapping[str, Any]) -> bool:
        """A model class that ends in Model, on images alone."""
        classes = config.get("architectures") or [""]
        return is_image_model(root, config) and "text_config" not in config and classes[0].endswith("Model")

    def layout(self, root: Path, recipe: Recipe) -> Layout:
        """Pooling as it was asked for."""
        return Layout(settings={"pooling": recipe.pooling})

    def check(self, model: str, config: Any) -> None:
        """Refuse models that read texts as well."""
        if hasattr(config, "text_config"):
            raise Refused(f"{model} reads images and texts; export it with --task image-text-embedding")
        super().check(model, config)
        if config.model_type == "vit_mae":
            raise Refused(
                f"{model} hides patches that it draws at random; save its encoder with "
                "ViTModel.from_pretrained(...).save_pretrained(folder), then export that folder"
            )

    def answer(self, source: Source, model: Any, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """One vector, or one for every token or place, row by row."""
        found = model(**values)
        pooling = source.settings["pooling"]
        if pooling == "pooler":  # of a map of channels it is one of a single place, TextNet's of four
            return {OUTPUT: found.pooler_output.flatten(1)}
        hidden = found.last_hidden_state
        if hidden.ndim == 4:  # a map of channels: to (batch, places, channels), as tokens are
            hidden = hidden.flatten(1, 2) if _channels_last(source) else hidden.flatten(2).transpose(1, 2)
        return {OUTPUT: hidden if pooling == "none" else hidden[:, 0] if pooling == "cls" else hidden.mean(1)}

    def traced(self, source: Source, name: str, folder: Path) -> Traced:
        """The module, with the pooling decided before."""
        return super().traced(_decided(source), name, folder)

    def reference(self, source: Source, model: Any, inputs: Mapping[str, Any]) -> Arrays | None:
        """The same from transformers' own pixels, with pooling written here a second time."""
        found, pooling = model(**inputs), _pooling(source)
        if pooling == "pooler":
            return {OUTPUT: found.pooler_output[0].numpy().ravel()}
        hidden = found.last_hidden_state[0].numpy()
        if hidden.ndim == 3:
            places = hidden if _channels_last(source) else np.moveaxis(hidden, 0, 2)
            hidden = np.array([place for row in places for place in row])
        if pooling == "none":
            return {OUTPUT: hidden}
        return {OUTPUT: hidden[0] if pooling == "cls" else np.average(hidden, 0)}

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """How the vector was made."""
        return {**super().task_config(source, outputs), "pooling": _pooling(source)}


def _decided(source: Source) -> Source:
    return replace(source, settings={"pooling": _pooling(source)})


def _channels_last(source: Source) -> bool:
    return source.config.model_type in _CHANNELS_LAST


def _pooling(source: Source) -> str:
    """What was asked for; else the model's own pooler where it has a trained one, its class token, or the mean.

    Raises Refused where the model has no such thing.
    """
    asked: str | None = source.settings["pooling"]
    empty, found = _answer_of_noise(source)
    hidden = found.get("last_hidden_state")
    if hidden is None:
        raise Refused(f"{source.model} ({source.architecture}) has no last hidden state; choose a model that has one")
    has_pooler, is_map = found.get("pooler_output") is not None and _has_weights(source, empty), hidden.ndim == 4
    pooling = asked or ("pooler" if has_pooler else "mean" if is_map or not _has_class_token(empty) else "cls")
    if pooling == "pooler" and not has_pooler:
        raise Refused(f"{source.model} has no trained pooler; choose --pooling {'' if is_map else 'cls, '}mean or none")
    if pooling == "cls" and is_map:
        raise Refused(
            f"{source.model} answers with a map of places and has no first token; choose --pooling mean or none"
        )
    return pooling


def _has_weights(source: Source, empty: Any) -> bool:
    """Whether the checkpoint has the pooler's weights: many were saved without."""
    wanted = [name for name, _ in empty.named_parameters() if "pooler" in name]
    present = weight_names(source.folder)
    return all(any(name.endswith(one) for name in present) for one in wanted)


def _has_class_token(empty: Any) -> bool:
    """Whether a token of its own stands before the patches: of models without a pooler I-JEPA has none."""
    names = [name.rpartition(".")[2] for name, _ in empty.named_parameters()]
    return any("cls" in name or "class" in name for name in names)


def _answer_of_noise(source: Source) -> tuple[Any, Any]:
    """The class with random weights, and its outputs: shapes only, where that can be."""
    try:
        return _answer_on(source, "meta")
    except RuntimeError:  # DINOv3 asks what autocast does on its device, which has no answer there
        return _answer_on(source, "cpu")


def _answer_on(source: Source, device: str) -> tuple[Any, Any]:
    import torch
    import transformers

    geometry = source.processor.geometry
    with quiet(), torch.device(device), torch.inference_mode():
        empty = getattr(transformers, source.auto_class).from_config(
            source.config, trust_remote_code=source.trust_remote_code
        )
        return empty, empty.eval()(pixel_values=torch.zeros(1, 3, geometry.height, geometry.width))


TASK = ImageFeatureExtractionExport()
