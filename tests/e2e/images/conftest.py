"""Models of the zoo on images, and pictures for them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.zoo.images import EXPORT_SIZES, task_model
from tests.zoo import Zoo, exported_zoo


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """`zoo(task, architecture, *options of the export, **config)`."""

    def written(folder: Path, task: str, architecture: str, *options: str, **config: Any) -> tuple[Path, Sequence[str]]:
        if not options and architecture in EXPORT_SIZES:
            options = ("--image-size", "x".join(map(str, EXPORT_SIZES[architecture])))
        return task_model(folder, task, architecture, **config), options

    yield from exported_zoo(tmp_path_factory, written, use_fast=False)


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Coarse noise enlarged, with fine noise on it: neither flat nor all detail."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 7, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = draw.normal(0, 20, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """The image as a job carries it."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return base64.b64encode(content.getvalue()).decode()


def decoded(png: str) -> Any:
    """The pixels of a picture in a reply."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def assorted() -> list[str]:
    """Images that differ in proportion, size, kind and mode; one lies on its side."""
    turned = Image.Exif()
    turned[0x0112] = 6
    return [
        encoded(picture(64, 48, 0)),
        encoded(picture(40, 90, 1), "JPEG", quality=90),
        encoded(picture(33, 33, 2).convert("L")),
        encoded(picture(150, 100, 3), "WEBP", lossless=True),
        encoded(picture(20, 25, 4).convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
        encoded(picture(80, 50, 5), "JPEG", exif=turned),
        encoded(picture(51, 51, 6).convert("RGBA")),
    ]


@pytest.fixture(scope="session")
def images() -> list[str]:
    """See assorted."""
    return assorted()
