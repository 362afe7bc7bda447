"""What the worker and its graph do to an image is what transformers' image processors do."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.images.geometry import EXTENT, PIXELS, Geometry
from export.errors import Refused
from export.image_processor import ImageProcessor, image_processor, take_apart

SIDE = {"height": 32, "width": 32}
EDGES = {"shortest_edge": 40, "longest_edge": 64}
BOX, ROOM = {"max_height": 120, "max_width": 150}, {"height": 128, "width": 150}
IGNORED = {"do_center_crop": True, "crop_size": 24, "crop_pct": 0.9, "keep_aspect_ratio": True}
PROCESSORS: dict[str, tuple[str, dict[str, Any], tuple[int, int] | None]] = {
    "exact": ("ViTImageProcessor", {"size": SIDE}, None),
    "exact, other filter": ("SiglipImageProcessor", {"size": {"height": 24, "width": 40}}, None),
    "exact, nearest pixel, odd numbers": ("EfficientNetImageProcessor", {"size": SIDE}, None),
    "exact, then a crop": ("DeiTImageProcessor", {"size": {"height": 37, "width": 36}, "crop_size": SIDE}, None),
    "a crop alone": ("CLIPImageProcessor", {"do_resize": False, "crop_size": SIDE}, None),
    "shortest, then a crop": ("CLIPImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": SIDE}, None),
    "shortest, then a larger crop": ("BitImageProcessor", {"size": {"shortest_edge": 21}, "crop_size": SIDE}, None),
    "share of a crop": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}, None),
    "no crop from 384 on": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}, "crop_pct": 0.875}, None),
    "shortest, longer than it says": ("LevitImageProcessor", {"size": {"shortest_edge": 31}, "crop_size": SIDE}, None),
    "blue first": ("MobileViTImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": SIDE}, None),
    "no mean": ("SegformerImageProcessor", {"size": SIDE, "do_normalize": False}, None),
    "no scale": ("ViTImageProcessor", {"size": SIDE, "do_rescale": False, "do_normalize": False}, None),
    "multiples": ("DPTImageProcessor", {"size": {"height": 45, "width": 59}, "ensure_multiple_of": 14}, None),
    "canvas": ("DetrImageProcessor", {"size": EDGES}, None),
    "wide canvas": ("ConditionalDetrImageProcessor", {"size": EDGES}, (40, 60)),
    "canvas of its own size": ("DetrImageProcessor", {"size": EDGES, "pad_size": {"height": 72, "width": 64}}, None),
    "box on a canvas": ("DetrImageProcessor", {"size": BOX, "pad_size": ROOM}, None),
    "box on a canvas, no mask": ("YolosImageProcessor", {"size": BOX, "pad_size": ROOM}, None),
    "box on a canvas, if asked to": ("RTDetrImageProcessor", {"size": BOX, "do_pad": True, "pad_size": ROOM}, None),
    "box that is a canvas": ("ConditionalDetrImageProcessor", {"size": BOX}, None),
    "box on a smaller canvas": ("DetrImageProcessor", {"size": BOX}, (70, 90)),
    "box, fixed by us": ("RTDetrImageProcessor", {"size": BOX}, (48, 64)),
    "settings that are another's": ("ViTImageProcessor", {"size": SIDE, **IGNORED}, None),
    "fixed by us": ("YolosImageProcessor", {"size": EDGES}, (48, 64)),
    "fixed by its size": ("DPTImageProcessor", {"size": SIDE, "keep_aspect_ratio": True}, None),
    "fixed by us, no size": ("GLPNImageProcessor", {}, (32, 64)),
    "fixed by us, not resized": (
        "DPTImageProcessor",
        {"do_resize": False, "do_pad": True, "size_divisor": 14},
        (28, 42),
    ),
}
FOUND: dict[str, ImageProcessor] = {}


def found(name: str) -> ImageProcessor:
    """A processor of PROCESSORS taken apart; at once on noise compared with itself."""
    if name not in FOUND:
        kind, values, asked = PROCESSORS[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            FOUND[name] = take_apart(getattr(transformers, kind)(**values), "model", asked)
    return FOUND[name]


@settings(max_examples=150)
@given(
    name=st.sampled_from(sorted(PROCESSORS)),
    height=st.integers(2, 200),
    width=st.integers(2, 200),
    seed=st.integers(0, 3),
)
def test_pixels_of_any_image(name: str, height: int, width: int, seed: int):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
    processor = found(name)
    feeds = processor.geometry.feeds(image, "image", 1 << 30)
    assert feeds[PIXELS].dtype == np.uint8
    assert feeds[PIXELS].shape == (processor.geometry.height, processor.geometry.width, 3)
    expected = processor.inputs(image)
    pixels = expected["pixel_values"][0].numpy()
    np.testing.assert_allclose(processor.numbers(feeds), pixels, atol=1e-5 * max(1, np.abs(pixels).max()))
    if "pixel_mask" in expected:
        extent = np.argwhere(expected["pixel_mask"][0].numpy()).max(axis=0) + 1
        assert np.array_equal(feeds[EXTENT], extent)


@pytest.mark.parametrize(
    ("kind", "values", "asked", "sentence"),
    [
        (
            "YolosImageProcessor",
            {"size": EDGES},
            None,
            "makes every image another size (shortest_edge 40, longest_edge 64)",
        ),
        ("GLPNImageProcessor", {}, None, "name it with --image-size HEIGHTxWIDTH"),
        (
            "ViTImageProcessor",
            {"size": SIDE},
            (64, 64),
            "says the size itself (height 32, width 32); leave --image-size",
        ),
        (
            "YolosImageProcessor",
            {"size": BOX},
            None,
            "makes every image another size (max_height 120, max_width 150)",
        ),
        (
            "DetrImageProcessor",
            {"size": BOX, "pad_size": ROOM},
            (64, 64),
            "says the size itself (height 128, width 150, max_height 120, max_width 150); leave --image-size out",
        ),
        (
            "DPTImageProcessor",
            {"do_resize": False, "do_pad": True, "size_divisor": 14},
            None,
            "makes every image another size (its own), and a bundle has one: name it with --image-size",
        ),
        (
            "DPTImageProcessor",
            {"do_resize": False, "do_pad": True, "size_divisor": 14},
            (28, 40),
            "pads images to multiples of 14; give --image-size such a height and width, not 28x40",
        ),
        ("ZoeDepthImageProcessor", {}, None, "ZoeDepthImageProcessor does something to an image of 131 x 97 beside"),
        ("ImageGPTImageProcessor", {}, None, "fails on a plain image"),
        (
            "CLIPImageProcessor",
            {"size": {"longest_edge": 40}},
            None,
            "model's CLIPImageProcessor is none of those that the worker knows (KeyError: 'height'); no bundle",
        ),
    ],
)
def test_what_cannot_be_done_alike_is_refused(kind: str, values: Any, asked: tuple[int, int] | None, sentence: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = getattr(transformers, kind)(**values)
    with pytest.raises(Refused) as refusal:
        take_apart(processor, "model", asked)
    assert sentence in str(refusal.value)


def test_geometry_survives_the_manifest():
    geometry = found("canvas").geometry
    values = {name: getattr(geometry, name) for name in geometry.__dataclass_fields__}
    assert Geometry.from_config({**values, "size": list(geometry.size)}) == geometry


def test_loading_a_processor_prints_nothing(capfd: pytest.CaptureFixture[str]):
    FOUND.clear()
    found("share of a crop")
    assert capfd.readouterr() == ("", "")


def test_a_processor_of_torchvision_alone_has_a_stand_in(tmp_path: Path):
    settings = {
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        "size": {"height": 48, "width": 64},
        "resample": 2,
        "do_center_crop": None,
        "crop_size": None,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "device": None,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    found = image_processor(tmp_path, "model", None)
    assert (found.geometry.height, found.geometry.width, found.geometry.resample, found.fixed) == (48, 64, 2, False)
    np.testing.assert_allclose(found.offset, [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], atol=1e-6)
