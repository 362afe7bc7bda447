"""image-transform: every size, shape and format, through handler(job)."""

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from engine.batching.passage import Passage
from engine.batching.stats import Stats
from engine.bundle import Bundle, Manifest
from engine.config import Limits
from engine.tasks import load_task
from handler.handler import Handler

BUNDLE = Bundle(Path(), Manifest("image-transform", None, "none", "image-transform", {}, "none", {}, {}))


def picture(width: int, height: int, kind: str = "PNG", mode: str = "RGB", **options: Any) -> str:
    """A gradient to the right in red and downwards in green."""
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    red, green = np.meshgrid(across, down)
    pixels = np.stack([red, green, np.zeros_like(red)], axis=-1).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(content, kind, **options)
    return base64.b64encode(content.getvalue()).decode()


def ask(payload: dict[str, Any], limits: Limits = Limits()) -> Any:  # noqa: B008
    handler = Handler(load_task(BUNDLE, limits), Passage(Stats()), dict)
    return asyncio.run(handler.handle({"id": "1", "input": payload}))


def opened(reply: dict[str, Any]) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(reply["image"])))
    assert image.format is not None and image.format.lower() == reply["format"]
    assert image.size == (reply["width"], reply["height"])
    return image


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (60, 30)),
        ({"width": 20}, (20, 10)),
        ({"height": 60}, (120, 60)),
        ({"width": 1}, (1, 1)),
        ({"width": 40, "height": 40}, (40, 20)),
        ({"width": 40, "height": 40, "fit": "cover"}, (40, 40)),
        ({"width": 40, "height": 40, "fit": "stretch"}, (40, 40)),
        ({"width": 120, "height": 120, "fit": "contain"}, (120, 60)),
    ],
)
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_sizes_and_formats(options: dict[str, Any], size: tuple[int, int], kind: str):
    image = opened(ask({"image": picture(60, 30), "format": kind, **options}))
    assert image.size == size
    if min(size) > 5:
        pixels = np.asarray(image.convert("RGB")).astype(int)
        assert pixels[size[1] // 2, -2, 0] - pixels[size[1] // 2, 1, 0] > 100  # still redder to the right
        assert pixels[-2, size[0] // 2, 1] - pixels[1, size[0] // 2, 1] > 100


def test_cover_cuts_the_sides_and_stretch_does_not():
    options = {"image": picture(60, 30), "width": 30, "height": 30, "format": "png"}
    covered, stretched = (np.asarray(opened(ask({**options, "fit": fit}))) for fit in ("cover", "stretch"))
    assert (covered[15, 0, 0] > 50, covered[15, -1, 0] < 205) == (True, True)
    assert (stretched[15, 0, 0] < 15, stretched[15, -1, 0] > 240) == (True, True)


def test_quality_makes_smaller_files():
    best, worst = (len(ask({"image": picture(200, 200), "quality": quality})["image"]) for quality in (95, 5))
    assert worst < best


def test_orientation_is_applied_and_metadata_dropped():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    exif[0x010E] = "where it was taken"
    image = opened(ask({"image": picture(60, 30, exif=exif), "format": "jpeg"}))
    assert image.size == (30, 60)
    assert not image.getexif()


_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
_NOTE = PngInfo()
_NOTE.add_text("comment", "where it was taken")


@pytest.mark.parametrize("size", [{}, {"width": 20}])
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_comments_profiles_and_transparency_do_not_survive(kind: str, size: dict[str, int]):
    for sent in (
        picture(60, 30, "JPEG", comment=b"where it was taken", icc_profile=_PROFILE, xmp=b"<x/>"),
        picture(60, 30, transparency=(0, 0, 0), icc_profile=_PROFILE, pnginfo=_NOTE),
        picture(60, 30, mode="P", transparency=0),
        picture(60, 30, "GIF", mode="P", transparency=0, comment=b"where it was taken"),
        picture(60, 30, mode="L", transparency=0),
        picture(60, 30, "WEBP", mode="RGBA", icc_profile=_PROFILE, xmp=b"<x/>"),
    ):
        kept = {"comment", "icc_profile", "transparency", "xmp", "exif"}
        before = Image.open(io.BytesIO(base64.b64decode(sent)))
        assert kept & before.info.keys() or before.mode == "RGBA"
        image = opened(ask({"image": sent, "format": kind, **size}))
        assert image.mode == "RGB"
        assert not kept & image.info.keys()


@pytest.mark.parametrize("size", [(900, 1), (1, 900)])
def test_what_is_contained_keeps_a_pixel(size: tuple[int, int]):
    image = opened(ask({"image": picture(*size), "width": 30, "height": 30, "fit": "contain"}))
    assert image.size == tuple(max(1, side // 30) for side in size)


def test_what_is_contained_in_a_large_box_is_measured_and_not_the_box():
    """`contain` says at most: a thumbnail's box may be far larger than the limit, in both directions."""
    image = opened(ask({"image": picture(900, 1), "width": 950, "height": 16_000}, Limits(max_pixels=1000)))
    assert image.size == (950, 1)


@pytest.mark.parametrize(("side", "kind"), [(16_384, "webp"), (65_501, "jpeg")])
def test_an_image_may_be_too_long_for_its_new_format(side: int, kind: str):
    reply = ask({"image": picture(side, 1), "format": kind})
    assert reply["error"].startswith(f"invalid input: `image` has {side} x 1 pixels, {kind} takes {side - 1} a side")
    assert opened(ask({"image": picture(side, 1), "format": "png"})).width == side


def test_a_list_gets_a_list():
    replies = ask({"images": [picture(8, 4), picture(4, 8)], "width": 2, "format": "png"})
    assert [(reply["width"], reply["height"]) for reply in replies] == [(2, 1), (2, 4)]


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({"image": "aGVsbG8="}, "`image` is no image of a known format"),
        ({"image": picture(8, 8), "width": 0}, "`width` must be a whole number from 1 to 16383, got 0"),
        ({"image": picture(8, 8), "format": "bmp"}, "`format` must be one of jpeg, png, webp, got bmp"),
        ({"image": picture(8, 8), "fit": "cover", "width": 2}, "`fit` needs both `width` and `height`"),
        ({"image": picture(8, 8), "quality": 101}, "`quality` must be a whole number from 1 to 100"),
        ({"image": picture(8, 8), "size": 3}, "unknown field `size`; known are `fit`, `format`, `height`"),
        ({"image": picture(40, 40)}, "40 x 40 pixels, allowed are 1000 in all"),
        (
            {"image": picture(20, 20), "width": 100, "height": 11, "fit": "stretch"},
            "`image` would have 100 x 11 pixels, allowed are 1000 in all (MAX_PIXELS); give a smaller `width`",
        ),
        (
            {"images": [picture(8, 2), picture(8, 4)], "width": 60, "height": 60},
            "`images[1]` would have 60 x 30 pixels, allowed are 1000 in all (MAX_PIXELS)",
        ),
        (
            {"image": picture(1, 900), "width": 1000},
            "`image` would have 1000 x 900000 pixels, allowed are 16383 a side; give a smaller `width` or `height`",
        ),
    ],
)
def test_what_is_wrong_gets_a_sentence(payload: dict[str, Any], sentence: str):
    assert sentence in ask(payload, Limits(max_pixels=1000))["error"]
