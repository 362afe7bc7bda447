"""Models with two encoders that meet in one space (CLIP, SigLIP), offline: a graph for images and a graph for texts.

What leaves a graph is the vector as the model projects it; lengths, scale and bias are applied by the worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from engine.images.dual import IMAGE, TEXT
from engine.vectors import OUTPUT
from export.errors import Refused
from export.gate.judged import VectorsExport
from export.images import ImageExport, from_pixels, image_inputs, is_image_model, task_of
from export.lengths import longest_row
from export.model_files.sentence_files import read_modules
from export.model_files.weight_files import weight_files
from export.tasks.base import Layout
from export.text import row_tokens, texts, tokens_of
from export.tokenizer.fast import fast_tokenizer, tokenizer_file
from export.tracing.torch_onnx import Traced

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Row
    from export.nodes import Axes
    from export.recipe import Recipe
    from export.source import Source

_SIGLIP_TOKENS = 64
"""What the pipeline pads every text for SigLIP to."""


class DualExport(VectorsExport, ImageExport):
    """The models that AutoModelForZeroShotImageClassification loads."""

    graphs: ClassVar[tuple[str, ...]] = (IMAGE, TEXT)
    options: ClassVar[tuple[str, ...]] = ("image_size", "max_length")
    reads: ClassVar[str] = "images and texts"
    unit: ClassVar[str] = "inputs"

    def layout(self, root: Path, recipe: Recipe) -> Layout:
        """The folder of the model inside `root`, as sentence-transformers' clip-ViT-B-32 has one."""
        return Layout(clip_folder(root) or "")

    def check(self, model: str, config: Any) -> None:
        """Refuse models that do not compare a vector of the image with one of the text."""
        super().check(model, config)
        # SigLIP's config leaves the initial scale out; ALIGN divides by a temperature.
        scaled = any(hasattr(config, name) for name in ("logit_scale_init_value", "temperature_init_value"))
        if not hasattr(config, "text_config") or not (scaled or is_siglip(config)):
            raise Refused(
                f"{model} ({config.model_type}) does not compare vectors; choose a model such as CLIP or SigLIP"
            )

    def processors(self, folder: Path, model: str, layout: Layout, recipe: Recipe) -> Mapping[str, Any]:
        """The image processor, and the tokenizer."""
        found = super().processors(folder, model, layout, recipe)
        return {**found, "tokenizer": fast_tokenizer(folder, model, recipe)}

    def max_length(
        self, recipe: Recipe, layout: Layout, processors: Mapping[str, Any], config: Any, positions: int | None
    ) -> int:
        """Tokens of the longest text."""
        positions = getattr(config.text_config, "max_position_embeddings", None)
        tokenizer, asked = processors["tokenizer"], recipe.max_length
        if not is_siglip(config):
            return longest_row(asked, tokenizer.model_max_length, positions, tokenizer)
        trained = longest_row(None, _SIGLIP_TOKENS, positions, tokenizer)
        if asked not in (None, trained):
            raise Refused(
                f"--max-length {asked}: SigLIP reads the last place of texts padded to {trained} tokens, others get "
                "other scores; leave it out"
            )
        return trained

    def describe(self, source: Source) -> str:
        """Architecture, size and length."""
        return f"{super().describe(source)}, up to {source.max_length} tokens"

    def answer(self, source: Source, model: Any, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The vector of images, or of texts."""
        if "pixel_values" in values:
            return {OUTPUT: model.get_image_features(pixel_values=values["pixel_values"])}
        if model.config.model_type == "chinese_clip":  # whose own method asks for a pooler that it has not
            return {OUTPUT: model.text_projection(model.text_model(**values).last_hidden_state[:, 0])}
        return {OUTPUT: model.get_text_features(**values)}

    def traced(self, source: Source, name: str, folder: Path) -> Traced:
        """One of the two encoders."""
        model = source.load_model()
        if name == IMAGE:
            return Traced(from_pixels(source, model), image_inputs(source))
        return Traced(_from_tokens(source, model), _text_inputs(source))

    def files(self, source: Source) -> Mapping[str, str]:
        """The image processor's settings, and the tokenizer."""
        return {**super().files(source), "tokenizer.json": tokenizer_file(source)}

    def pads(self, source: Source) -> Mapping[str, int]:
        """The tokenizer's."""
        return {"input_ids": source.tokenizer.pad_token_id or 0}

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """Geometry and length."""
        return {**super().task_config(source, outputs), "max_length": source.max_length}

    def text_probes(self, source: Source) -> Iterator[tuple[str, str]]:
        """Label and text."""
        for label, text in texts(source, self.online.examples):
            yield f"text: {label}", text

    def inputs_of(self, source: Source, payload: Json, rows: Sequence[Row]) -> Sequence[Mapping[str, Any]] | None:
        """Images through transformers' own processor; of texts the tokens that the worker makes, as for texts alone."""
        of_images = [row for row in rows if row.graph == IMAGE]
        images = super().inputs_of(source, payload, of_images) if of_images else ()
        if images is None:
            return None
        pictures = iter(images)
        return [next(pictures) if row.graph == IMAGE else row_tokens(row) for row in rows]


def is_siglip(config: Any) -> bool:
    """As the pipeline asks."""
    return "siglip" in config.model_type


def clip_folder(root: Path) -> str | None:
    """Where the files of a sentence-transformers model that is nothing but a CLIPModel lie; None where it is none."""
    modules = read_modules(root)
    return modules[0][1] if len(modules) == 1 and modules[0][0].endswith(".CLIPModel") else None


def is_dual_model(root: Path, config: Mapping[str, Any]) -> bool:
    """Whether the files of a model are those of one on images and texts, without a decoder or another head."""
    classes = config.get("architectures") or ["Model"]
    has_both = "text_config" in config and "vision_config" in config
    return has_both and classes[0].endswith("Model") and is_image_model(root, config)


def text_inputs(source: Source, text: str) -> Mapping[str, Any]:
    """One text as the pipeline makes it for the model: tensors with a batch of one."""
    padding = {"padding": "max_length"} if is_siglip(source.config) else {}
    found = tokens_of(source, text, **padding)
    return {name: found[name] for name in _token_names(source)}


def weight(source: Source, name: str) -> float | None:
    """A number among the weights, such as the scale of CLIP's cosines; None where there is none."""
    from safetensors import safe_open

    for file in weight_files(source.folder):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118  (not a mapping)
                return float(tensors.get_tensor(name).float().reshape(-1)[0])
    return None


def _token_names(source: Source) -> list[str]:
    return [name for name in ("input_ids", "attention_mask") if name in source.tokenizer.model_input_names]


def _text_inputs(source: Source) -> list[tuple[str, str, Axes, Any]]:
    import torch

    length: int | str = source.max_length if is_siglip(source.config) else "length"
    ids = text_inputs(source, "a text that is traced")["input_ids"].repeat(2, 1)
    examples = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return [(name, "int32", ("batch", length), examples[name].to(torch.int32)) for name in _token_names(source)]


def _from_tokens(source: Source, model: Any) -> Any:
    import torch

    names, answer = _token_names(source), task_of(source).answer

    class FromTokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tokens: Any) -> Any:
            inputs = {name: values.to(torch.int64) for name, values in zip(names, tokens, strict=True)}
            return answer(source, self.model, inputs)

    return FromTokens().eval()
