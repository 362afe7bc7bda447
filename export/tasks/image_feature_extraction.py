"""Image embeddings, offline: pooling goes into the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from engine.vectors import OUTPUT
from export.errors import Refused
from export.images import ImageExport, is_image_model
from export.measures import NEIGHBOURS, VECTORS, Measure, compare_vectors, same_neighbours
from export.source import quiet
from export.tasks.base import Layout

if TYPE_CHECKING:
    from engine.tensors import Arrays
    from export.recipe import Recipe
    from export.source import Source
    from export.torch_onnx import Traced


class ImageFeatureExtractionExport(ImageExport):
    """Models without a head."""

    tag: ClassVar[str] = "image-feature-extraction"
    options: ClassVar[tuple[str, ...]] = ("image_size", "pooling")
    poolings: ClassVar[tuple[str, ...]] = ("pooler", "cls", "mean", "none")
    may_miss: ClassVar[tuple[str, ...]] = ("pooler",)
    measures: ClassVar[Sequence[Measure]] = VECTORS
    measures_of_all: ClassVar[Sequence[Measure]] = (NEIGHBOURS,)

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
        if config.model_type == "vit_mae":
            raise Refused(
                f"{model} hides patches that it draws at random; save its encoder with "
                "ViTModel.from_pretrained(...).save_pretrained(folder), then export that folder"
            )

    def answer(self, source: Source, model: Any, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """One vector, or the last hidden state as it is."""
        found = model(**values)
        pooling, hidden = source.settings["pooling"], found.last_hidden_state
        if pooling == "pooler":  # of a map of channels it is one of a single place
            pooled = found.pooler_output
            return {OUTPUT: pooled[:, :, 0, 0] if pooled.ndim == 4 else pooled}
        if pooling == "cls":
            return {OUTPUT: hidden[:, 0]}
        if pooling == "mean":  # over patches, or over the places of a map of channels
            return {OUTPUT: hidden.mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))}
        return {OUTPUT: hidden}

    def traced(self, source: Source, name: str, folder: Path) -> Traced:
        """The module, with the pooling decided before."""
        return super().traced(_decided(source), name, folder)

    def reference(self, source: Source, model: Any, inputs: Mapping[str, Any]) -> Arrays | None:
        """The same from transformers' own pixels."""
        return super().reference(_decided(source), model, inputs)

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """How the vector was made."""
        return {**super().task_config(source, outputs), "pooling": _pooling(source)}

    def compare(self, source: Source, expected: Arrays, found: Arrays) -> Sequence[float]:
        """Cosine, and the largest difference relative to the norm of what was expected."""
        return compare_vectors(expected[OUTPUT], found[OUTPUT])

    def compare_all(self, source: Source, expected: Sequence[Arrays], found: Sequence[Arrays]) -> Sequence[float]:
        """Whether the neighbours of every image are the same."""
        return [same_neighbours(expected, found, OUTPUT)]


def _decided(source: Source) -> Source:
    return replace(source, settings={"pooling": _pooling(source)})


def _pooling(source: Source) -> str:
    """What was asked for; else the model's own pooler where it has a trained one, else the first vector.

    Raises Refused where the model has no such thing.
    """
    asked: str | None = source.settings["pooling"]
    has_pooler = _has_pooler(source)
    pooling = asked or ("pooler" if has_pooler else "cls")
    if pooling == "pooler" and not has_pooler:
        raise Refused(f"{source.model} has no trained pooler; choose --pooling cls, mean or none")
    return pooling


def _has_pooler(source: Source) -> bool:
    """Whether the class gives a pooled vector, and the checkpoint has its weights (many were saved without)."""
    try:
        empty, found = _answer_of_noise(source, "meta")  # shapes only
    except RuntimeError:  # DINOv3 asks what autocast does on its device, which has no answer there
        empty, found = _answer_of_noise(source, "cpu")
    if found.get("pooler_output") is None:
        return False
    wanted = [name for name, _ in empty.named_parameters() if "pooler" in name]
    present = _weight_names(source.folder)
    return all(any(name.endswith(one) for name in present) for one in wanted)


def _answer_of_noise(source: Source, device: str) -> tuple[Any, Any]:
    """The class with random weights, and its outputs."""
    import torch
    import transformers

    geometry = source.processor.geometry
    with quiet(), torch.device(device), torch.inference_mode():
        empty = getattr(transformers, source.auto_class).from_config(
            source.config, trust_remote_code=source.trust_remote_code
        )
        return empty, empty.eval()(pixel_values=torch.zeros(1, 3, geometry.height, geometry.width))


def _weight_names(folder: Path) -> list[str]:
    from safetensors import safe_open

    names: list[str] = []
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            names.extend(tensors.keys())
    return names


TASK = ImageFeatureExtractionExport()
