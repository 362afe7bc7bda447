"""What is exactly as large as a setting allows is taken, and what is one more is refused."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engine.audio.decode import decode as decode_audio
from engine.audio.example import recording
from engine.bundle import open_bundle
from engine.config import Limits
from engine.errors import InvalidInput
from engine.images.decode import decode as decode_image
from engine.tasks import media
from engine.tasks.image_transform import ImageTransform
from engine.tasks.zero_shot_classification import ZeroShotClassification


def image_of(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height)).save(content, "PNG")
    return content.getvalue()


def refused(work: Any, *arguments: Any) -> str:
    with pytest.raises(InvalidInput) as error:
        work(*arguments)
    return str(error.value)


def test_bytes_of_media():
    limits = Limits(max_media_bytes=1000)
    assert len(media.bytes_of(base64.b64encode(b"x" * 1000).decode(), "image", limits)) == 1000
    assert "has 1001 bytes" in refused(media.bytes_of, base64.b64encode(b"x" * 1001).decode(), "image", limits)


def test_pixels():
    assert decode_image(image_of(20, 50), "image", 1000).size == (20, 50)
    assert "allowed are 1000 in all" in refused(decode_image, image_of(7, 143), "image", 1000)


def test_seconds():
    content = base64.b64decode(recording(1.0))
    decode_audio(content, 16_000, 1.0, "audio")
    assert "longer than the 0.999 s" in refused(decode_audio, content, 16_000, 0.999, "audio")


def test_items():
    task, image = ImageTransform(Limits(max_items=3)), base64.b64encode(image_of(1, 1)).decode()
    task.parse({"images": [image] * 3, "width": 1, "format": "png"})
    assert "must hold 1 to 3" in refused(task.parse, {"images": [image] * 4, "width": 1, "format": "png"})


def test_rows(small_bundle: Path):
    task = ZeroShotClassification.from_bundle(open_bundle(small_bundle), Limits(max_queued_rows=6))
    assert len(task.preprocess(task.parse({"texts": ["a"] * 2, "candidate_labels": ["b", "c", "d"]}))) == 6
    payload = {"texts": ["a"] * 7, "candidate_labels": ["b"]}
    assert "MAX_QUEUED_ROWS" in refused(lambda: task.preprocess(task.parse(payload)))
