"""Maps of numbers, one a pixel: enlarged to an image's own size as torch does it, and written into a reply.

Everything is float32 and in torch's order of operations, so that ties fall as they do there.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from engine.tensors import Array

_CUBIC = -0.75  # torch's coefficient; Pillow has -0.5
_AT_ONCE = 1 << 22  # numbers in work at the same time while a class map is made: 16 MB
_PIXELS_AT_ONCE = 1 << 20  # of which the classes around are compared


def _bilinear(size: int, out: int) -> tuple[Array, Array, Array]:
    """Of every output pixel along one axis: the two input pixels that it lies between, and the share of the second."""
    at = np.maximum((np.arange(out, dtype=np.float32) + np.float32(0.5)) * np.float32(size / out) - np.float32(0.5), 0)
    first = np.minimum(at.astype(np.intp), size - 1)
    return first, np.minimum(first + 1, size - 1), at - first.astype(np.float32)


def class_map(logits: Array, height: int, width: int, go_on: Callable[[], None] = lambda: None) -> Array:
    """The best class of every pixel: argmax of `logits`, float32 (classes, h, w), enlarged bilinearly.

    What interpolate(mode="bilinear", align_corners=False) and argmax give, in the smallest dtype that holds it. Where
    the pixels around agree on a class, the interpolated ones do, so that only the others are computed. `go_on` is asked
    between pieces of them, and may raise what ends the work.
    """
    rows, columns = _bilinear(logits.shape[1], height), _bilinear(logits.shape[2], width)
    best = logits.argmax(axis=0).astype(np.min_scalar_type(len(logits) - 1))
    found: Array = best[rows[0][:, None], columns[0]]
    flat = np.ascontiguousarray(logits.reshape(len(logits), -1).T)  # a pixel's classes side by side
    step = max(1, _AT_ONCE // len(logits))
    for y, x in _between_classes(best, found, rows, columns):
        for start in range(0, len(y), step):
            go_on()
            part = slice(start, start + step)
            found[y[part], x[part]] = _mixed(flat, logits.shape[2], rows, columns, y[part], x[part]).argmax(axis=1)
    return found


def _between_classes(best: Array, found: Array, rows: Any, columns: Any) -> Iterator[tuple[Array, Array]]:
    """The output pixels, as their `y` and `x`, around which not every pixel is of the class that `found` has there.

    Some rows at a time: an image may have 50 million pixels, and each of them costs several numbers here.
    """
    step = max(1, _PIXELS_AT_ONCE // found.shape[1])
    for start in range(0, len(found), step):
        band = slice(start, start + step)
        differs = np.zeros(found[band].shape, bool)
        for row in rows[:2]:
            for column in columns[:2]:
                differs |= best[row[band, None], column] != found[band]
        y, x = np.nonzero(differs)
        yield y + start, x


def _mixed(flat: Array, width: int, rows: Any, columns: Any, y: Array, x: Array) -> Array:
    """Interpolated classes (pixels, classes) of the output pixels at `y`, `x`."""
    (above, below, down), (left, right, across) = rows, columns
    top, bottom = above[y] * width, below[y] * width
    share_down, share_across = down[y, None], across[x, None]
    upper = (1 - share_across) * flat[top + left[x]] + share_across * flat[top + right[x]]
    lower = (1 - share_across) * flat[bottom + left[x]] + share_across * flat[bottom + right[x]]
    mixed: Array = (1 - share_down) * upper + share_down * lower
    return mixed


def enlarge(values: Array, height: int, width: int) -> Array:
    """`values`, float32 (h, w), at another size, as interpolate(mode="bicubic", align_corners=False) makes them."""
    across, columns = _cubic(values.shape[1], width)
    down, rows = _cubic(values.shape[0], height)
    wide = sum(values[:, columns[tap]] * across[tap] for tap in range(4))
    enlarged: Array = sum(np.asarray(wide)[rows[tap]] * down[tap][:, None] for tap in range(4))
    return enlarged


def _cubic(size: int, out: int) -> tuple[Array, Array]:
    """The four weights, and the four input pixels, of every output pixel along one axis: both (4, out)."""
    at = (np.arange(out, dtype=np.float32) + np.float32(0.5)) * np.float32(size / out) - np.float32(0.5)
    first = np.floor(at)
    share = at - first
    near, far = np.stack([share, 1 - share]), np.stack([share + 1, 2 - share])
    inner = ((_CUBIC + 2) * near - (_CUBIC + 3)) * near * near + 1
    outer = ((_CUBIC * far - 5 * _CUBIC) * far + 8 * _CUBIC) * far - 4 * _CUBIC
    weights = np.stack([outer[0], inner[0], inner[1], outer[1]]).astype(np.float32)
    pixels = np.clip(first.astype(np.intp) + np.arange(-1, 3)[:, None], 0, size - 1)
    return weights, pixels


def png(pixels: Array) -> str:
    """A PNG file, in base64, of an array that Pillow takes: uint8 (grey) or bool (black and white), (height, width)."""
    content = io.BytesIO()
    # Level 1 is several times as fast as the default, and flat areas shrink as well.
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return base64.b64encode(content.getvalue()).decode()


def run_lengths(mask: Array) -> Array:
    """A mask row by row as the lengths of its runs, the first of which is outside (0 when the mask begins inside)."""
    flat = mask.reshape(-1)
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0], ends, [len(flat)])) if not flat[0] else np.concatenate(([0, 0], ends, [len(flat)]))
    return np.diff(edges)
