"""Decoding: what transformers' pipelines load, or a sentence."""

import base64
import io
import resource
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.errors import InvalidInput
from engine.images import decode as module
from engine.images.decode import FORMATS, decode, decoded

NOISE = np.random.default_rng(0).integers(0, 256, (21, 34, 4), np.uint8)
LIMIT = 10_000

# Pillow's notes on odd files are ignored in the worker; pytest would make errors of them.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def as_the_pipeline(content: bytes) -> Any:
    from transformers.image_utils import load_image

    return np.asarray(load_image(base64.b64encode(content).decode()))


def image_of(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
    if mode == "P with transparency":
        image = Image.fromarray(NOISE[..., :3]).quantize(16)
        image.info["transparency"] = bytes(range(0, 256, 16))
        return image
    return Image.fromarray(NOISE, "RGBA").convert("RGB").convert(mode) if mode != "RGBA" else Image.fromarray(NOISE)


FILES = {
    "jpeg": encoded(image_of("RGB"), "JPEG"),
    "grey jpeg": encoded(image_of("L"), "JPEG"),
    "cmyk jpeg": encoded(image_of("CMYK"), "JPEG"),
    "progressive jpeg": encoded(image_of("RGB"), "JPEG", progressive=True),
    "png": encoded(image_of("RGB"), "PNG"),
    "grey png": encoded(image_of("L"), "PNG"),
    "grey png with alpha": encoded(image_of("LA"), "PNG"),
    "png with alpha": encoded(image_of("RGBA"), "PNG"),
    "palette png": encoded(image_of("P"), "PNG"),
    "palette png with alpha": encoded(image_of("P with transparency"), "PNG"),
    "png of 16 bits": encoded(image_of("I;16"), "PNG"),
    "black and white png": encoded(image_of("1"), "PNG"),
    "webp": encoded(image_of("RGBA"), "WEBP"),
    "gif": encoded(image_of("P"), "GIF"),
    "animated gif": encoded(image_of("RGB"), "GIF", save_all=True, append_images=[Image.new("RGB", (34, 21), "red")]),
    "animated webp": encoded(
        image_of("RGB"), "WEBP", save_all=True, append_images=[Image.new("RGB", (34, 21), "red")], lossless=True
    ),
    "bmp": encoded(image_of("RGB"), "BMP"),
    "tiff": encoded(image_of("CMYK"), "TIFF"),
    "compressed tiff": encoded(image_of("RGB"), "TIFF", compression="tiff_deflate"),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_the_pipeline(name: str):
    image = decode(FILES[name], "image", LIMIT)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), as_the_pipeline(FILES[name]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_camera_said(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "WEBP"):
        content = encoded(image_of("RGB"), kind, exif=exif)
        image = decode(content, "image", LIMIT)
        assert np.array_equal(np.asarray(image), as_the_pipeline(content))
        assert image.size == ((34, 21) if orientation < 5 else (21, 34))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "entry",
    [
        struct.pack("<HHLL", 0x011A, 2, 3, int.from_bytes(b"72\0", "little")),
        struct.pack("<HHLL", 0x02BC, 2, 2, int.from_bytes(b"a\0", "little")),
        struct.pack("<HHLL", 0x8825, 4, 1, 99_999),
    ],
    ids=["a resolution as text", "XMP as text", "GPS behind the end"],
)
def test_a_photo_is_turned_whatever_else_its_exif_says(kind: str, entry: bytes):
    turned = struct.pack("<HHLL", 0x0112, 3, 1, 6)
    directory = b"".join(sorted((turned, entry)))
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + directory + bytes(4)
    upright = decode(encoded(image_of("RGB"), kind), "image", LIMIT)
    image = decode(encoded(image_of("RGB"), kind, exif=exif), "image", LIMIT)
    assert np.array_equal(np.asarray(image), np.rot90(np.asarray(upright), -1))


def test_formats_beside_the_list_are_refused():
    for kind in ("ICO", "PPM", "TGA", "PCX", "JPEG2000", "PDF", "EPS"):
        with pytest.raises(InvalidInput, match="`images\\[3\\]` is no image of a known format; send JPEG, PNG"):
            decode(encoded(image_of("RGB"), kind), "images[3]", LIMIT)
    for content in (b"hello", b"\x00" * 100, b"<svg xmlns='http://www.w3.org/2000/svg'/>"):
        with pytest.raises(InvalidInput, match=", ".join(FORMATS)):
            decode(content, "image", LIMIT)


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_too_many_pixels_are_refused_by_the_header_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000_000)  # Pillow refuses twice as many by itself
    with pytest.raises(InvalidInput, match="6000 x 6000 pixels, allowed are 10000 in all \\(MAX_PIXELS\\)"):
        decode(_png(6000, 6000, b""), "image", LIMIT)
    with pytest.raises(InvalidInput, match="has more pixels than the 10000 in all that are allowed \\(MAX_PIXELS\\)"):
        decode(_png(60_000, 60_000, b""), "image", LIMIT)
    with pytest.raises(InvalidInput, match="damaged or truncated"):
        decode(_png(10, 10, b""), "image", LIMIT)


@pytest.mark.parametrize("flags", [2 << 2, 2 << 2 | 1, 3 << 2 | 1], ids=["background", "clear", "as before"])
def test_a_gif_that_is_to_be_cleared_takes_no_memory_before_its_size_is_looked_at(flags: int):
    """Pillow fills as many pixels when it opens one, of which only later frames would see anything."""

    def gif(side: int) -> bytes:
        control = b"!\xf9\x04" + bytes((flags, 0, 0, 1, 0))
        frame = b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x01\0;"
        return b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + control + frame

    assert decode(gif(1), "image", LIMIT).size == (1, 1)
    with pytest.raises(InvalidInput, match="more pixels than the 10000 in all"):
        decode(gif(20_000), "image", LIMIT)


LARGE = encoded(Image.new("RGB", (2001, 2000)), "PNG")
SMALL = encoded(image_of("RGB"), "PNG")


def size(content: bytes) -> tuple[int, int]:
    return decode(content, "image", 1 << 30).size


def test_large_images_wait_for_one_another_and_small_ones_for_none(monkeypatch: pytest.MonkeyPatch):
    """A WebP of 64 characters has 50 million pixels, and takes 800 MB while it is decoded."""
    monkeypatch.setattr(module, "_LARGE_AT_ONCE", threading.BoundedSemaphore(1))
    with ThreadPoolExecutor(1) as threads:
        with decoded(LARGE, "image", 1 << 30) as image:
            waiting = threads.submit(size, LARGE)
            assert size(SMALL) == (34, 21)
            with pytest.raises(TimeoutError):
                waiting.result(0.2)
        assert waiting.result(60) == image.size == (2001, 2000)


def test_a_large_image_that_fails_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_LARGE_AT_ONCE", threading.BoundedSemaphore(1))
    for _ in range(2):
        with pytest.raises(InvalidInput, match="damaged or truncated"):
            decode(LARGE[: len(LARGE) // 2], "image", 1 << 30)
        with pytest.raises(ZeroDivisionError), decoded(LARGE, "image", 1 << 30):
            raise ZeroDivisionError  # whatever is made of it
    with pytest.raises(ValueError, match="released too many times"):
        module._LARGE_AT_ONCE.release()


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_of_a_webp_only_the_pixels_are_kept():
    """Pillow decodes it as an animation, and would hold two further canvases beside them."""
    side = 3_000  # 36 MB a canvas: more than a C library keeps when it is given back
    content = encoded(Image.new("RGB", (side, side)), "WEBP", quality=0, method=0)
    before = resident()
    image = decode(content, "image", 1 << 30)
    assert resident() - before < 2 * 4 * side**2
    assert image.getpixel((side - 1, side - 1)) == (0, 0, 0)


def test_pillows_own_limit_stays_above_the_setting():
    with pytest.raises(InvalidInput, match="has 70000 x 3000 pixels; allowed are 65535 on a side"):
        decode(_png(70_000, 3000, b""), "image", 210_000_000)
    decode(FILES["png"], "image", LIMIT)  # other limits in the same process change nothing
    with pytest.raises(InvalidInput, match="has 70000 x 3000 pixels; allowed are 65535 on a side"):
        decode(_png(70_000, 3000, b""), "image", 210_000_000)


def test_a_jpeg_of_many_scans_is_refused():
    """Each scan goes over all pixels, and 80 bytes are one: a file of the usual size would keep a core for hours."""
    content = encoded(Image.new("L", (90, 90)), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    decode(content[:-2] + scan * 50 + content[-2:], "image", LIMIT)
    with pytest.raises(InvalidInput, match="is a JPEG of more than 100 scans; save it anew"):
        decode(content[:-2] + scan * 100 + content[-2:], "image", LIMIT)


def test_an_image_that_is_a_line_is_refused():
    with pytest.raises(InvalidInput, match="has 1 x 65536 pixels; allowed are 65535 on a side"):
        decode(encoded(Image.new("L", (1, 65_536)), "PNG"), "image", 100_000)


@pytest.mark.parametrize(("tile", "is_refused"), [(96, False), (1024, True)])
def test_a_tile_that_reaches_far_beyond_the_image_is_refused(tile: int, is_refused: bool):
    """One pixel may have a tile of gigabytes, which is decoded whole."""
    packed = zlib.compress(bytes(tile * tile))
    long, short = 4, 3
    entries = [(256, long, 1), (257, long, 1), (258, short, 8), (259, short, 8), (262, short, 1), (277, short, 1)]
    entries += [(322, long, tile), (323, long, tile), (324, long, 134), (325, long, len(packed))]
    directory = b"".join(struct.pack("<HHLL", tag, kind, 1, value) for tag, kind, value in entries)
    content = struct.pack("<2sHLH", b"II", 42, 8, len(entries)) + directory + bytes(4) + packed
    if is_refused:
        with pytest.raises(InvalidInput, match="is a TIFF whose tiles have 1048576 pixels, allowed are 20000"):
            decode(content, "image", LIMIT)
    else:
        assert decode(content, "image", LIMIT).size == (1, 1)


def test_text_that_unpacks_to_megabytes_is_refused():
    text = b"Comment\0\0" + zlib.compress(b"a" * 100_000_000)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    whole = encoded(image_of("RGB"), "PNG")
    with pytest.raises(InvalidInput, match="damaged"):
        decode(whole[:33] + chunk + whole[33:], "image", LIMIT)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_short_is_refused(name: str):
    whole = FILES[name]
    for size in (1, 8, 20, len(whole) // 4, len(whole) // 2, len(whole) * 3 // 4):
        image = decoded_or_refused(whole[:size])
        # What is missing was a later frame, or was not needed.
        assert image is None or np.array_equal(np.asarray(image), as_the_pipeline(whole))
    if "animated" not in name:
        with pytest.raises(InvalidInput):
            decode(whole[: len(whole) // 2], "image", LIMIT)


@given(
    name=st.sampled_from(sorted(FILES)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    end=st.floats(0, 1),
)
def test_damaged_files_raise_nothing_but_invalid_input(name: str, changes: list[tuple[float, int]], end: float):
    content = bytearray(FILES[name])
    for place, value in changes:
        content[int(place * len(content))] = value
    decoded_or_refused(bytes(content[: round(end * len(content))]))


@given(
    magic=st.sampled_from(
        [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBPVP8 ", b"GIF89a", b"BM", b"II*\0", b""]
    ),
    rest=st.binary(max_size=200),
)
def test_garbage_raises_nothing_but_invalid_input(magic: bytes, rest: bytes):
    decoded_or_refused(magic + rest)


def decoded_or_refused(content: bytes) -> Image.Image | None:
    """The image, or None where the bytes are refused, with one sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = decode(content, "image", LIMIT)
        except InvalidInput as refusal:
            sentence = str(refusal)
        else:
            assert image.mode == "RGB"
            assert image.width * image.height <= LIMIT
            return image
    assert sentence.startswith("`image` ")
    assert "\n" not in sentence
    return None
