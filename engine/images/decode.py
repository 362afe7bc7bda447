"""From the bytes of a file to an image, as transformers' pipelines load one.

Rule: whatever the bytes are, no other error than InvalidInput. Only the header is read before the limits are checked,
so that a few bytes cannot ask for gigabytes.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext

from PIL import ExifTags, Image, UnidentifiedImageError

from engine.config import Limits
from engine.errors import InvalidInput
from engine.images.headers import excess, excess_of_exif
from engine.probe import cpu_quota

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What Pillow may try. Its other decoders are of little use here, and each is code that strangers' bytes would run."""

_LONGEST_SIDE = 65_535  # JPEG's. Of a longer PNG or TIFF Pillow keeps a pointer a row, and a resize goes over all rows
_MOST_IN_PYTHON = 4_000_000  # pixels and bytes: Pillow decodes a BMP in run lengths in Python, up to 1 us for each
_LARGE = 4_000_000  # pixels, which take up to 16 bytes each while they are decoded: those of a WebP, as an animation's
_LARGE_AT_ONCE = threading.BoundedSemaphore(cpu_quota())  # more would only take turns on the CPUs
_RUN_LENGTHS = (1, 2)  # a BMP's compression: of 8 bits, of 4
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What an orientation asks for, as in Pillow's exif_transpose, which also writes all of the Exif anew."""
_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop)

# Pillow refuses twice as many. The limit is ours, below, but a GIF and a WebP take memory for their pixels before that.
Image.MAX_IMAGE_PIXELS = Limits().max_pixels // 2
# Notes on files that are odd but readable: nobody at a worker could act on them.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(content: bytes, field: str, max_pixels: int) -> Image.Image:
    """The first frame of an image file, turned as its EXIF orientation says, in RGB.

    Alpha is dropped and 16 bits become 8, as Pillow's convert("RGB") does it. `field` names the image in errors.
    Raises InvalidInput for files that are no image, of another format, damaged, cut short, over `max_pixels`, or made
    to cost more than its pixels do.
    """
    with decoded(content, field, max_pixels) as image:
        return image


@contextmanager
def decoded(content: bytes, field: str, max_pixels: int) -> Generator[Image.Image, None, None]:
    """What `decode` gives, for a block that makes something smaller of it.

    There are no more large images at once in this process, decoded and in such blocks, than it has CPUs: a few bytes
    may be one, and a task has many threads. Raises as `decode` does.
    """
    image = _opened(content, field, max_pixels)
    with _LARGE_AT_ONCE if image.width * image.height > _LARGE else nullcontext():
        image = _upright(image, field)
        yield image


def _opened(content: bytes, field: str, max_pixels: int) -> Image.Image:
    """Of which only the header was read."""
    if what := excess(content, max_pixels):
        raise InvalidInput(f"`{field}` is {what}; save it anew")
    # One number for the whole process, so it only rises.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, -(-max_pixels // 2))
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise InvalidInput(
            f"`{field}` has more pixels than the {max_pixels} in all that are allowed (MAX_PIXELS); send a smaller one"
        ) from None
    except UnidentifiedImageError:
        raise InvalidInput(f"`{field}` is no image of a known format; send {', '.join(FORMATS)}") from None
    except Exception as error:  # the plugins raise whatever they come across
        raise InvalidInput(f"`{field}` is a damaged image file ({_what(error)})") from error
    width, height = image.size
    if width * height > max_pixels:
        raise InvalidInput(
            f"`{field}` has {width} x {height} pixels, allowed are {max_pixels} in all (MAX_PIXELS); send a smaller one"
        )
    if max(width, height) > _LONGEST_SIDE:
        raise InvalidInput(
            f"`{field}` has {width} x {height} pixels; allowed are {_LONGEST_SIDE} on a side, so crop it"
        )
    in_runs = image.format == "BMP" and image.info["compression"] in _RUN_LENGTHS
    if in_runs and width * height + len(content) > _MOST_IN_PYTHON:
        raise InvalidInput(
            f"`{field}` is a BMP in run lengths (RLE), {width} x {height} pixels in {len(content)} bytes, allowed are "
            f"{_MOST_IN_PYTHON} of both together; save it uncompressed"
        )
    return image


def _upright(image: Image.Image, field: str) -> Image.Image:
    try:
        if image.format == "TIFF":  # Pillow would read all of these when it loads the pixels
            for directory in _DIRECTORIES:
                image.getexif().pop(directory, None)
        image.load()
        if image.format == "WEBP":  # its decoder holds two canvases more
            vars(image)["_decoder"] = None
        what = excess_of_exif(image.info.get("exif", b""))
        if not what:
            turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            image = image if turn is None else image.transpose(turn)
            return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # as above
        raise InvalidInput(f"`{field}` is a damaged or truncated image file ({_what(error)})") from error
    raise InvalidInput(f"`{field}` is {what}; save it anew")


def _what(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
