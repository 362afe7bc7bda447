"""An image processor of transformers, taken apart: what the worker does to an image, and what the graph does to pixels.

Geometry is read from the processor's settings, numbers are measured on images of one colour, and both are compared with
the processor itself on noise before anything else happens. A processor that does more than resize, crop, pad and scale
numbers is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from engine.images.geometry import EXTENT, PIXELS, Geometry
from engine.tensors import Array
from export.command.said import first_line, needing, quiet
from export.errors import Refused
from export.model_files.json_files import read_processor

_NOISE = ((97, 131), (140, 60), (33, 33))  # (height, width): landscape, portrait, square; all odd sizes
_TOLERANCE = 1e-5
_COLOUR = (10, 100, 200)
_WARPS_FROM = 384  # ConvNeXt's processor crops below this edge and squeezes from it on
_ENLARGED: Mapping[str, float] = {"LevitImageProcessor": 256 / 224}
"""Processors of which the shorter side becomes so many times what they say, before the crop."""
_STAND_INS: Mapping[Any, str] = {"DINOv3ViTImageProcessorFast": "ViTImageProcessor"}
"""Processors that run on torchvision alone, and one of the same settings on Pillow, which rounds resized pixels."""


@dataclass(frozen=True)
class ImageProcessor:
    """A processor with everything that is known about it.

    A pixel value of channel c is `scale[c]` * (channel `order[c]` of the image) + `offset[c]`, and 0 beside the image
    on a canvas. `fixed`: whether the worker resizes to a size of its own, because the processor leaves the size open.
    `masks`: whether it says where on a canvas the image is.
    """

    processor: Any
    geometry: Geometry
    fixed: bool
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    order: tuple[int, ...] = ()
    masks: bool = False

    def inputs(self, image: Any) -> Mapping[str, Any]:
        """What transformers' processor makes of a Pillow image in RGB: tensors with a batch of one."""
        geometry = self.geometry
        # Said, because an image of three rows would be taken for one with its channels first.
        options: dict[str, Any] = {"input_data_format": "channels_last"}
        if self.fixed:
            options["do_resize"] = False
            image = image.resize((geometry.width, geometry.height), resample=geometry.resample)
        elif geometry.canvas:
            options["pad_size"] = {"height": geometry.height, "width": geometry.width}
            if not self._fits(image):
                options["do_resize"] = False
                height, width = geometry.target(image.height, image.width)
                image = image.resize((width, height), resample=geometry.resample)
        with quiet():
            found: Mapping[str, Any] = self.processor(images=image, return_tensors="pt", **options)
        return found

    def _fits(self, image: Any) -> bool:
        """Whether the processor's own size of `image` is one that the canvas holds."""
        free = Geometry(1 << 30, 1 << 30, self.geometry.resize, self.geometry.size, canvas=True)
        height, width = free.target(image.height, image.width)
        return height <= self.geometry.height and width <= self.geometry.width

    def numbers(self, feeds: Mapping[str, Array]) -> Array:
        """What the graph makes of the inputs of one row, in numpy: float32 (channels, height, width)."""
        scale, offset = np.array(self.scale, np.float32), np.array(self.offset, np.float32)
        values: Array = feeds[PIXELS][..., list(self.order)] * scale + offset
        if EXTENT in feeds:
            height, width = feeds[EXTENT]
            values[height:], values[:, width:] = 0, 0
        return values.transpose(2, 0, 1)


def image_processor(
    folder: Path, model: str, asked: tuple[int, int] | None, *, trust_remote_code: bool = False
) -> ImageProcessor:
    """The processor of the model in `folder`; `asked` is a size (height, width) for one that leaves it open.

    Raises Refused for what the worker cannot do as it does.
    """
    import transformers

    asked_for = read_processor(folder).get("image_processor_type")
    kind = getattr(transformers, _STAND_INS.get(asked_for, "AutoImageProcessor"))
    options = {} if asked_for in _STAND_INS else {"use_fast": False, "trust_remote_code": trust_remote_code}
    with needing(model, "image processor that can be loaded"), quiet():
        processor = kind.from_pretrained(folder, local_files_only=True, **options)
    return take_apart(processor, model, asked)


def take_apart(processor: Any, model: str, asked: tuple[int, int] | None) -> ImageProcessor:
    """See image_processor."""
    try:
        geometry, fixed = _geometry(processor, model, asked)
        masks = geometry.canvas and _returns_mask(processor)
        found = _measured(ImageProcessor(processor, geometry, fixed, masks=masks), model)
        _compare(found, model)
    except (ArithmeticError, AttributeError, ImportError, LookupError, TypeError, ValueError) as error:
        # Settings that it has not, or odd ones.
        raise Refused(
            f"{model}'s {type(processor).__name__} is none of those that the worker knows ({type(error).__name__}: "
            f"{first_line(error)}); no bundle can be made of it"
        ) from error
    return found


def _geometry(processor: Any, model: str, asked: tuple[int, int] | None) -> tuple[Geometry, bool]:
    """The geometry, and whether its size is the worker's own."""
    said = _settings(processor)
    resizes = bool(said.get("do_resize", True))
    size = dict(said.get("size") or {}) if resizes else {}
    resample = int(said.get("resample") or 0)
    crop = dict(said["crop_size"]) if said.get("do_center_crop") else {}
    pad = dict(said.get("pad_size") or {}) if said.get("do_pad") else {}
    laid = _on_canvas(processor, size, pad, resample)
    if laid and not pad:
        height, width = asked or (laid.height, laid.width)
        return replace(laid, height=height, width=width), False
    shares = resizes and "crop_pct" in said
    is_open = not size or said.get("keep_aspect_ratio") or not {"shortest_edge", "max_height"}.isdisjoint(size)
    if is_open and not laid and not crop and not shares:
        return _open(said, model, size, resample, asked), True
    if asked is not None:
        raise Refused(
            f"{model}'s image processor says the size itself ({_told({**size, **crop, **pad})}); leave --image-size out"
        )
    if laid:
        return laid, False
    if crop and not resizes:
        return Geometry(int(crop["height"]), int(crop["width"]), resample=resample, crop=True), False
    if shares:
        return _cropping_by_share(int(size["shortest_edge"]), said["crop_pct"], resample), False
    if "shortest_edge" in size:
        size["shortest_edge"] = int(_ENLARGED.get(type(processor).__name__, 1) * size["shortest_edge"])
    return _closed(size, crop, resample, said.get("ensure_multiple_of") or 1), False


def _settings(processor: Any) -> Mapping[str, Any]:
    """What its class reads; other keys of its file stay on it as attributes, and change nothing."""
    known = {name for kind in type(processor).__mro__ for name in signature(kind).parameters}
    return {name: getattr(processor, name) for name in known if hasattr(processor, name)}


def _on_canvas(processor: Any, size: Mapping[str, Any], pad: Mapping[str, Any], resample: int) -> Geometry | None:
    """Where images of any aspect ratio are padded: to the size that is said, else to the least that holds them all."""
    if {"shortest_edge", "longest_edge"} <= size.keys():
        resize, bounds = "bounded", (int(size["shortest_edge"]), int(size["longest_edge"]))
        canvas = (bounds[1], bounds[1])
    elif {"max_height", "max_width"} <= size.keys():
        resize, bounds = "fit", (int(size["max_height"]), int(size["max_width"]))
        canvas = bounds
    else:
        return None
    if pad:
        canvas = (int(pad["height"]), int(pad["width"]))
    elif not _returns_mask(processor):
        return None
    return Geometry(*canvas, resize, bounds, resample, canvas=True)


def _open(
    said: Mapping[str, Any], model: str, size: Mapping[str, Any], resample: int, asked: tuple[int, int] | None
) -> Geometry:
    """Every image at one size, though the processor would keep its aspect ratio, or its size."""
    if asked is None and "height" not in size:
        raise Refused(
            f"{model}'s image processor makes every image another size ({_told(size) or 'its own'}), and a bundle has "
            "one: name it with --image-size HEIGHTxWIDTH; images of another aspect ratio will be squeezed"
        )
    height, width = asked or (int(size["height"]), int(size["width"]))
    multiple = said.get("do_pad") and said.get("size_divisor")
    if multiple and (height % multiple or width % multiple):
        raise Refused(
            f"{model}'s image processor pads images to multiples of {multiple}; give --image-size such a height and "
            f"width, not {height}x{width}"
        )
    return Geometry(height, width, "exact", (height, width), resample)


def _cropping_by_share(edge: int, share: float | None, resample: int) -> Geometry:
    """As ConvNeXt's processor."""
    if edge >= _WARPS_FROM or not share:
        return Geometry(edge, edge, "exact", (edge, edge), resample)
    return Geometry(edge, edge, "shortest", (int(edge / share), 0), resample, crop=True)


def _closed(size: Mapping[str, Any], crop: Mapping[str, Any], resample: int, multiple: int) -> Geometry:
    if "shortest_edge" in size:
        return Geometry(int(crop["height"]), int(crop["width"]), "shortest", (size["shortest_edge"], 0), resample, True)
    resized = (round(int(size["height"]) / multiple) * multiple, round(int(size["width"]) / multiple) * multiple)
    height, width = (int(crop["height"]), int(crop["width"])) if crop else resized
    return Geometry(height, width, "exact", resized, resample, bool(crop))


def _returns_mask(processor: Any) -> bool:
    """Whether it lays images on a canvas and says where; YOLOS's claims to, and does not."""
    from PIL import Image

    with quiet():
        return "pixel_mask" in processor(images=Image.new("RGB", (64, 64)), return_tensors="np")


def _told(size: Mapping[str, Any]) -> str:
    names = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
    return ", ".join(f"{name} {size[name]}" for name in names if size.get(name) is not None)


def _measured(found: ImageProcessor, model: str) -> ImageProcessor:
    """With scale, offset and order, from what comes out for black, white and one colour."""
    black, white, colour = (_plain(found, shade, model) for shade in ((0, 0, 0), (255, 255, 255), _COLOUR))
    if not np.isfinite([black, white, colour]).all():  # two NaN would be no difference
        raise ValueError("its pixels are not finite")
    scale, offset = (white - black) / 255, black
    order = []
    for channel in range(3):
        guesses = [scale[channel] * shade + offset[channel] for shade in _COLOUR]
        order.append(int(np.argmin([abs(guess - colour[channel]) for guess in guesses])))
    return replace(found, scale=tuple(scale.tolist()), offset=tuple(offset.tolist()), order=tuple(order))


def _plain(found: ImageProcessor, shade: tuple[int, int, int], model: str) -> Array:
    from PIL import Image

    try:
        values = found.inputs(Image.new("RGB", (found.geometry.width, found.geometry.height), shade))
    except (ValueError, TypeError, KeyError) as error:
        raise Refused(
            f"{model}'s image processor fails on a plain image: {first_line(error)}; check its settings in "
            "preprocessor_config.json or processor_config.json"
        ) from error
    unknown = sorted(set(values) - {"pixel_values", "pixel_mask"})
    if unknown or values["pixel_values"].ndim != 4 or values["pixel_values"].shape[1] != 3:
        raise Refused(f"{model}'s image processor makes more of an image than three channels of pixels; no bundle can")
    pixels = values["pixel_values"][0].numpy().astype(np.float64)
    # A canvas has the image at the upper left, and a crop that is larger than the image has it in the middle.
    y, x = (0, 0) if found.geometry.canvas else (pixels.shape[1] // 2, pixels.shape[2] // 2)
    shade_found: Array = pixels[:, y, x]
    return shade_found


def _compare(found: ImageProcessor, model: str) -> None:
    """Refuse a processor whose pixels differ from ours."""
    from PIL import Image

    noise = np.random.default_rng(0)
    for height, width in _NOISE:
        image = Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8))
        expected = found.inputs(image)["pixel_values"][0].numpy()
        ours = found.numbers(found.geometry.feeds(image, "image", 1 << 40))
        limit = _TOLERANCE * max(1.0, float(np.abs(expected).max()))
        if expected.shape != ours.shape or float(np.abs(expected - ours).max()) > limit:
            raise Refused(
                f"{model}'s {type(found.processor).__name__} does something to an image of {width} x {height} beside "
                "resizing, cropping, padding and scaling its numbers, which is all that the worker does; no bundle can "
                "be made of it"
            )
