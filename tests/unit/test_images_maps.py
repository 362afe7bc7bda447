"""Maps are enlarged as torch does it."""

import base64
import io
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.images.maps import class_map, enlarge, png, run_lengths

SIZES = [(8, 8, 31, 47), (16, 12, 120, 7), (4, 9, 4, 9), (5, 5, 3, 2), (1, 1, 6, 4), (16, 16, 64, 64)]


def resized(values: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:  # type: ignore[type-arg]
    whole = torch.from_numpy(values)[None]
    found = torch.nn.functional.interpolate(whole, size=(height, width), mode=mode, align_corners=False)
    return np.asarray(found[0])


@pytest.mark.parametrize(("h", "w", "height", "width"), SIZES)
@pytest.mark.parametrize("smooth", [False, True])
def test_class_maps(h: int, w: int, height: int, width: int, smooth: bool):
    logits = np.random.default_rng(h).standard_normal((7, h, w)).astype(np.float32)
    if smooth:  # so that most neighbours agree on a class
        logits = logits.cumsum(axis=1).cumsum(axis=2)
    assert np.array_equal(class_map(logits, height, width), resized(logits, height, width, "bilinear").argmax(0))


def test_a_class_map_takes_few_bytes_a_pixel(monkeypatch: pytest.MonkeyPatch):
    """Several are made at a time, of images of 50 million pixels, and nothing else bounds what that takes."""
    monkeypatch.setattr("engine.images.maps._AT_ONCE", 1 << 14)
    monkeypatch.setattr("engine.images.maps._PIXELS_AT_ONCE", 1 << 14)
    logits = np.random.default_rng(0).standard_normal((3, 64, 64)).astype(np.float32)
    tracemalloc.start()
    try:
        found = class_map(logits, 1000, 1200)
        assert tracemalloc.get_traced_memory()[1] < 4 * found.size
    finally:
        tracemalloc.stop()
    assert found.dtype == np.uint8


def test_a_large_class_map_is_made_in_pieces(monkeypatch: pytest.MonkeyPatch):
    logits = np.random.default_rng(1).standard_normal((20, 9, 9)).astype(np.float32)
    whole = class_map(logits, 50, 60)
    monkeypatch.setattr("engine.images.maps._AT_ONCE", 700)
    monkeypatch.setattr("engine.images.maps._PIXELS_AT_ONCE", 200)
    assert np.array_equal(class_map(logits, 50, 60), whole)


@pytest.mark.parametrize(("h", "w", "height", "width"), SIZES)
def test_depths(h: int, w: int, height: int, width: int):
    values = np.random.default_rng(w).standard_normal((h, w)).astype(np.float32)
    np.testing.assert_allclose(
        enlarge(values, height, width), resized(values[None], height, width, "bicubic")[0], atol=1e-5
    )


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**36))
def test_run_lengths(height: int, width: int, bits: int):
    mask = np.array([bits >> place & 1 for place in range(height * width)], bool).reshape(height, width)
    counts = run_lengths(mask)
    assert np.array_equal(np.repeat(np.arange(len(counts)) % 2 == 1, counts), mask.reshape(-1))
    assert all(counts[1:])


def test_png():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(png(pixels))))), pixels)
