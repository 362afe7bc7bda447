"""What the tasks on images have in common offline: the processor, a graph that reads uint8 pixels, images for the gate.

The graph is traced from the model with its pixels' arithmetic in front and the task's head behind, all in torch, at one
size of image: position embeddings are then interpolated once, here, and every shape but the batch is fixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.images import examples
from engine.images.decode import decode
from engine.images.geometry import EXTENT, PIXELS
from engine.images.maps import png
from engine.tasks import DEFAULT_LIMITS
from engine.tasks.media import bytes_of
from export.errors import Refused
from export.exporters import trace_module
from export.image_processor import image_processor
from export.model_files.json_files import read_processor
from export.nodes import Axes
from export.own_task import missing
from export.source import DYNAMO, TORCHSCRIPT
from export.tasks.base import ExportTask, Layout, Probe
from export.tracing.torch_onnx import Traced

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Array, Arrays, Row
    from export.recipe import Recipe
    from export.source import Source


UNUSED_OF_DPT = ("neck.fusion_stage.layers.0.residual_layer1.",)
"""Weights of a layer that runs never, for the first one has nothing to fuse: Intel's checkpoints have none of them."""

_SAMPLES = 64


class ImageExport(ExportTask):
    """A task whose rows are images. A subclass says what leaves the graph (`answer`)."""

    options: ClassVar[tuple[str, ...]] = ("image_size",)
    traces_itself: ClassVar[bool] = True
    reads: ClassVar[str] = "images"
    unit: ClassVar[str] = "images"
    graph: ClassVar[str] = "model"

    def check(self, model: str, config: Any) -> None:
        """Refuse models without one size of images."""
        if config.model_type.startswith("siglip2"):
            raise Refused(
                f"{model} cuts every image into another number of patches (NaFlex); export a SigLIP 2 of one size, as "
                "google/siglip2-base-patch16-224 is"
            )

    def processors(self, folder: Path, model: str, layout: Layout, recipe: Recipe) -> Mapping[str, Any]:
        """The image processor, taken apart."""
        found = image_processor(folder, model, recipe.image_size, trust_remote_code=recipe.trust_remote_code)
        return {"processor": found}

    def describe(self, source: Source) -> str:
        """Architecture and size."""
        geometry = source.processor.geometry
        how = ", aspect ratio not kept" if source.processor.fixed else ", on a canvas" if geometry.canvas else ""
        return f"{source.architecture}, {geometry.height} x {geometry.width} pixels{how}"

    def exporters(self, config: Any) -> Sequence[str]:
        """Torch's two."""
        return (TORCHSCRIPT, DYNAMO)

    def answer(self, source: Source, model: Any, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """What leaves the graph, in torch: outputs by name, from the model's own inputs (`pixel_values` ...)."""
        raise missing(self, "answer")

    def traced(self, source: Source, name: str, folder: Path) -> Traced:
        """A module, its inputs and outputs: what `trace_graph` traces for graph `name`."""
        module = from_pixels(source, source.load_model())
        return Traced(module, image_inputs(source))

    def trace_graph(self, source: Source, folder: Path, name: str) -> Path:
        """Trace a module of the task's own; the traced graph has the task's inputs and outputs."""
        folder.mkdir(parents=True, exist_ok=True)
        return trace_module(source, self.traced(source, name, folder), folder / "model.onnx")

    def files(self, source: Source) -> Mapping[str, str]:
        """What the model's image processor was; the worker reads task_config."""
        return {"preprocessor_config.json": source.processor.processor.to_json_string()}

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """The geometry."""
        return {"image": asdict(source.processor.geometry)}

    def probes(self, source: Source) -> Iterator[Probe]:
        """One probe an image."""
        for label, value, image in images():
            yield Probe(label, {"image": value}, [source.processor.inputs(image)])

    def inputs_of(self, source: Source, payload: Json, rows: Sequence[Row]) -> Sequence[Mapping[str, Any]] | None:
        """The images through transformers' own processor."""
        names = [name for name in ("image", "images", "inputs") if name in payload]
        values = payload[names[0]] if names else []
        values = values if isinstance(values, list) else [values]
        if len(values) != len(rows) or not all(isinstance(value, str) for value in values):
            return None
        taken = (bytes_of(value, "image", DEFAULT_LIMITS) for value in values)
        return [source.processor.inputs(decode(one, "image", DEFAULT_LIMITS.max_pixels)) for one in taken]

    def samples(self, source: Source) -> Iterator[Json]:
        """Soft images, which are more like photographs than noise is."""
        noise = np.random.default_rng(11)
        for _ in range(_SAMPLES):
            yield {"image": png(_soft(noise, 240, 320))}

    def reference(self, source: Source, model: Any, inputs: Mapping[str, Any]) -> Arrays | None:
        """The same head on transformers' own pixels."""
        return {name: values[0].numpy() for name, values in self.answer(source, model, inputs).items()}


def task_of(source: Source) -> ImageExport:
    """The task, as what it is."""
    assert isinstance(source.task, ImageExport)
    return source.task


def is_image_model(root: Path, config: Mapping[str, Any]) -> bool:
    """Whether the files of a model are those of one that reads images."""
    processor = read_processor(root)
    names = f"{processor.get('image_processor_type', '')} {processor.get('feature_extractor_type', '')}"
    reads_sound = "sampling_rate" in processor
    return bool(processor) and not reads_sound and ("Image" in names or "image_mean" in processor)


def image_inputs(source: Source) -> list[tuple[str, str, Axes, Any]]:
    """Name, dtype, axes and an example of every input of a graph that reads images."""
    import torch

    geometry = source.processor.geometry
    height, width = geometry.height, geometry.width
    pixels = torch.randint(0, 256, (2, height, width, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    inputs: list[tuple[str, str, Axes, Any]] = [(PIXELS, "uint8", ("batch", height, width, 3), pixels)]
    if geometry.canvas:
        extent = torch.tensor([[height, width], [height // 2, width]], dtype=torch.int32)
        inputs.append((EXTENT, "int32", ("batch", 2), extent))
    return inputs


def from_pixels(source: Source, model: Any) -> Any:
    """A torch module: uint8 pixels (batch, height, width, 3), with a canvas also the extent, to the task's outputs."""
    import torch

    found, answer = source.processor, task_of(source).answer

    class FromPixels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.register_buffer("scale", torch.tensor(found.scale, dtype=torch.float32))
            self.register_buffer("offset", torch.tensor(found.offset, dtype=torch.float32))

        def forward(self, pixels: Any, extent: Any = None) -> Any:
            values = pixels.to(torch.float32)  # first of all: it is what TensorRT takes bytes for
            if found.order != (0, 1, 2):
                values = values[..., list(found.order)]
            values = (values * self.scale + self.offset).permute(0, 3, 1, 2)
            inputs = {"pixel_values": values}
            if extent is not None:
                rows = torch.arange(found.geometry.height, dtype=torch.int32)[None, :, None] < extent[:, 0, None, None]
                columns = torch.arange(found.geometry.width, dtype=torch.int32)[None, None] < extent[:, 1, None, None]
                mask = rows & columns
                inputs = {"pixel_values": values * mask[:, None]}
                if found.masks:
                    inputs["pixel_mask"] = mask.to(torch.int64)
            return answer(source, self.model, inputs)

    return FromPixels().eval()


def images() -> Iterator[tuple[str, str, Any]]:
    """Label, form in a payload and Pillow image: the examples, and images that differ in kind, size and proportion."""
    from PIL import Image

    for label, value in (
        ("shapes", examples.LANDSCAPE),
        ("portrait", examples.PORTRAIT),
        ("gradient", examples.GRADIENT),
    ):
        yield label, value, decode(bytes_of(value, "image", DEFAULT_LIMITS), "image", DEFAULT_LIMITS.max_pixels)
    noise = np.random.default_rng(7)
    patterns = {
        "noise": noise.integers(0, 256, (120, 160, 3), np.uint8),
        "tall noise": noise.integers(0, 256, (300, 90, 3), np.uint8),
        "soft colours": _soft(noise, 240, 320),
        "soft portrait": _soft(noise, 320, 240),
        "black": np.zeros((64, 64, 3), np.uint8),
        "white": np.full((50, 70, 3), 255, np.uint8),
        "one pixel": np.array([[[200, 30, 90]]], np.uint8).repeat(2, 0).repeat(2, 1),
    }
    for label, pixels in patterns.items():
        yield label, png(pixels), Image.fromarray(pixels)


def _soft(noise: np.random.Generator, height: int, width: int) -> Array:
    """Blurred noise: closer to a photograph than noise is."""
    from PIL import Image

    coarse = Image.fromarray(noise.integers(0, 256, (6, 8, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
