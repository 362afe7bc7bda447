"""From the bytes of a file to an image, as transformers' pipelines load one.

Rule: whatever the bytes are, no other error than InvalidInput. Only the header is read before the limits are checked,
so that a few bytes cannot ask for gigabytes.
"""

from __future__ import annotations

import io
import warnings
from math import ceil

from PIL import Image, ImageOps, UnidentifiedImageError

from engine.errors import InvalidInput

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What Pillow may try. Its other decoders are of little use here, and each is code that strangers' bytes would run."""

_LONGEST_SIDE = 65_535  # JPEG's. Of a longer PNG or TIFF Pillow keeps a pointer a row, and a resize goes over all rows
_MOST_SCANS = 100  # a progressive JPEG has about 10; each takes all pixels, and 80 bytes can be one
_START_OF_SCAN = b"\xff\xda"
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF's tags

Image.MAX_IMAGE_PIXELS = None  # the limit is ours, below: one setting, one sentence
# Notes on files that are odd but readable: nobody at a worker could act on them.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(content: bytes, field: str, max_pixels: int) -> Image.Image:
    """The first frame of an image file, turned as its EXIF orientation says, in RGB.

    Alpha is dropped and 16 bits become 8, as Pillow's convert("RGB") does it. `field` names the image in errors.
    Raises InvalidInput for files that are no image, of another format, damaged, cut short, over `max_pixels`, or made
    to cost more than its pixels do.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
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
    if image.format in ("JPEG", "MPO") and (scans := content.count(_START_OF_SCAN)) > _MOST_SCANS:
        raise InvalidInput(f"`{field}` is a JPEG of {scans} scans, allowed are {_MOST_SCANS}; save it anew")
    if (pixels := _tile_pixels(image)) > 2 * max_pixels:
        raise InvalidInput(
            f"`{field}` is a TIFF whose tiles have {pixels} pixels, allowed are {2 * max_pixels} (twice MAX_PIXELS); "
            "save it anew"
        )
    try:
        ImageOps.exif_transpose(image, in_place=True)  # loads the pixels
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # as above
        raise InvalidInput(f"`{field}` is a damaged or truncated image file ({_what(error)})") from error


def _tile_pixels(image: Image.Image) -> int:
    """Pixels of all tiles of a TIFF together: libtiff decodes each whole, however little of it the image shows."""
    tags = getattr(image, "tag_v2", {})
    width, length = tags.get(_TILE_WIDTH), tags.get(_TILE_LENGTH)
    if not (isinstance(width, int) and isinstance(length, int) and width > 0 and length > 0):
        return 0  # no tiles, or none that can be decoded
    return ceil(image.width / width) * width * ceil(image.height / length) * length


def _what(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
