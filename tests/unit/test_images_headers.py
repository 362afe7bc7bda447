"""Files whose headers ask for more than their bytes and pixels are worth; and odd ones that are to be decoded."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.errors import InvalidInput
from engine.images.decode import decode
from engine.tensors import Array

LIMIT = 100_000
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
BYTE, SHORT, LONG, RATIONAL, LONG8, SLONG8 = 1, 3, 4, 5, 16, 17
Entry = tuple[int, int, int | Sequence[int]]
DEFLATE, PACKBITS = 8, 32773

# Pillow's notes on odd files are ignored in the worker; pytest would make errors of them.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    content = io.BytesIO()
    (image or Image.fromarray(NOISE)).save(content, kind, **options)
    return content.getvalue()


def plain(content: bytes) -> Array:
    """What Pillow makes of it, without any check."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def refusal(content: bytes) -> str:
    with pytest.raises(InvalidInput) as error:
        decode(content, "image", LIMIT)
    return str(error.value)


JPEG = encoded("JPEG")


def segment(kind: int, content: bytes) -> bytes:
    return bytes((0xFF, kind)) + struct.pack(">H", len(content) + 2) + content


@pytest.mark.parametrize(
    "content",
    [
        JPEG + b"\xff\xda" * 200,
        JPEG + encoded("JPEG", progressive=True) * 50,
        JPEG[:2] + segment(0xEB, b"\xff\xda\0\2" * 200) + JPEG[2:],
        JPEG[:2] + segment(0xFE, b"") * 1000 + JPEG[2:],
        JPEG[:2] + segment(0xE1, b"Exif\0\0" + b"\xff\xda" * 1000) * 100 + JPEG[2:],
        JPEG[:2] + b"\xff" * 5000 + JPEG[2:],
        encoded("JPEG", restart_marker_rows=1),
        encoded("MPO", save_all=True, append_images=[Image.fromarray(NOISE)] * 30),
    ],
    ids=["a video behind it", "images behind it", "a signature", "comments", "Exif", "filling", "restarts", "MPO"],
)
def test_what_is_not_the_picture_is_no_scan_of_it(content: bytes):
    assert np.array_equal(np.asarray(decode(content, "image", LIMIT)), plain(JPEG))


@pytest.mark.parametrize("before", [b"", b"\xff\xd9"], ids=["", "behind an end that Pillow reads over"])
@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (segment(0xE1, b"Exif\0\0xx") * 151, "is a JPEG of more than 10000 segments, or 150 of Exif; save it anew"),
        (segment(0xFE, b"") * 10_001, "is a JPEG of more than 10000 segments, or 150 of Exif; save it anew"),
        (b"\xff\xfe\0\0" * 10_001, "is a JPEG of more than 10000 segments"),
        (b"\xff" * 100_002, "is a JPEG with more than 100000 bytes in front of the picture that belong to nothing"),
        (b"\xff\xd8" * 50_001, "is a JPEG with more than 100000 bytes in front of the picture that belong to nothing"),
    ],
    ids=["Exif", "comments", "comments without a length", "filling", "markers that stand alone"],
)
def test_headers_that_take_long_to_read_are_refused(before: bytes, more: bytes, sentence: str):
    assert sentence in refusal(JPEG[:2] + before + more + JPEG[2:])


def test_colour_profiles_that_unpack_to_megabytes_are_refused_where_they_are_many():
    profile = b"name\0\0" + zlib.compress(bytes(1_000_000))
    chunk = struct.pack(">I", len(profile)) + b"iCCP" + profile + struct.pack(">I", zlib.crc32(b"iCCP" + profile))
    whole = encoded("PNG")
    assert np.array_equal(np.asarray(decode(whole[:33] + chunk + whole[33:], "image", LIMIT)), NOISE)
    assert "is a PNG of more than 10 colour profiles" in refusal(whole[:33] + 11 * chunk + whole[33:])


def test_a_jpeg_without_a_picture_is_refused():
    assert "100000 bytes in front of the picture" in refusal(b"\xff\xd8\xff" + bytes(100_001))
    assert "no image of a known format" in refusal(JPEG[:2] + segment(0xFE, b"a"))


def tiff(entries: Sequence[Entry], pieces: Sequence[bytes], *, tiled: bool, big: bool = False) -> bytes:
    """A grey TIFF, or as `entries` say; equal pieces lie at one place. An entry of a tag replaces the usual one."""
    usual: list[Entry] = [(258, SHORT, 8), (262, SHORT, 1), (277, SHORT, 1)]
    at, offset, form, places, data = 16 if big else 8, "Q" if big else "L", "HHQ" if big else "HHL", {}, b""
    for piece in pieces:
        if piece not in places:
            places[piece] = at + len(data)
            data += piece
    usual += [(324 if tiled else 273, LONG8 if big else LONG, [places[piece] for piece in pieces])]
    usual += [(325 if tiled else 279, LONG, [len(piece) for piece in pieces])]
    given = {tag for tag, *_ in entries}
    every = sorted([*entries, *(entry for entry in usual if entry[0] not in given)], key=lambda entry: entry[0])
    directory, letters = b"", {BYTE: "B", SHORT: "H", LONG: "L", RATIONAL: "Q", LONG8: "Q", SLONG8: "q"}
    for tag, kind, value in every:
        values = [value] if isinstance(value, int) else value
        packed = struct.pack(f"<{len(values)}{letters[kind]}", *values)
        if len(packed) > (8 if big else 4):
            packed, data = struct.pack(f"<{offset}", at + len(data)), data + packed
        directory += struct.pack(f"<{form}", tag, kind, len(values)) + packed.ljust(8 if big else 4, b"\0")
    start = struct.pack("<2sHHH", b"II", 43, 8, 0) if big else struct.pack("<2sH", b"II", 42)
    start += struct.pack(f"<{offset}", at + len(data))
    return start + data + struct.pack("<Q" if big else "<H", len(every)) + directory + bytes(8)


def sized(width: int, height: int, compression: int = 1) -> list[Entry]:
    return [(256, LONG, width), (257, LONG, height), (259, SHORT, compression)]


TILE = zlib.compress(bytes(1024 * 1024))


@pytest.mark.parametrize(
    "entries",
    [
        [(322, BYTE, 240), (323, LONG, 8000)],
        [(322, SLONG8, 1024), (323, LONG, 1024)],
        [(322, SLONG8, 1024), (322, LONG, 16), (323, LONG, 1024)],
        [(322, LONG, [1024, 16]), (323, LONG, 1024)],
        [(322, LONG, 0), (323, LONG, 16)],
    ],
    ids=["a byte", "a signed long", "a second one", "two values", "zero"],
)
def test_a_tile_whose_size_decoders_read_differently_is_refused(entries: list[Entry]):
    content = tiff([*sized(1, 1, DEFLATE), *entries], [TILE], tiled=True)
    assert refusal(content) == "`image` is a TIFF with a damaged directory; save it anew"


def test_tiles_are_measured_as_the_image_lies_in_the_file():
    turned = [(274, SHORT, 6), (322, LONG, 1600), (323, LONG, 16)]
    row = zlib.compress(bytes(1600 * 16))
    assert decode(tiff([*sized(1590, 16, DEFLATE), *turned], [row], tiled=True), "image", LIMIT).size == (16, 1590)
    content = tiff([*sized(16, 1590, DEFLATE), *turned], [row] * 100, tiled=True)
    assert refusal(content) == (
        "`image` is a TIFF whose tiles have 2560000 pixels, allowed are 200000 (twice MAX_PIXELS); save it anew"
    )


@pytest.mark.parametrize("tiled", [False, True])
def test_pieces_beyond_the_image_are_refused(tiled: bool):
    """Pillow decodes all that an uncompressed TIFF lists."""
    shape = [(322, LONG, 16), (323, LONG, 16)] if tiled else [(278, LONG, 8)]
    entries = [*sized(16, 32), *shape]
    needed = 2 if tiled else 4
    rows = [bytes(128 * 4 // needed)]
    assert decode(tiff(entries, rows * needed, tiled=tiled), "image", LIMIT).size == (16, 32)
    content = tiff(entries, rows * 25, tiled=tiled)
    assert refusal(content) == f"`image` is a TIFF of 25 strips or tiles, allowed are {6 * needed}; save it anew"


def test_more_tiles_than_are_decoded_in_time_are_refused():
    content = tiff([*sized(500, 500), (322, LONG, 1), (323, LONG, 1)], [b"\0"] * 200_001, tiled=True)
    with pytest.raises(InvalidInput, match="is a TIFF of 200001 strips or tiles, allowed are 200000"):
        decode(content, "image", 1_000_000)


def test_strips_may_share_a_few_bytes_and_not_many():
    strip = b"\xf1\x07"  # 16 pixels of 7
    entries = [*sized(16, 100, PACKBITS), (278, LONG, 1)]
    image = decode(tiff(entries, [strip] * 100, tiled=False), "image", LIMIT)
    assert np.array_equal(np.asarray(image), np.full((100, 16, 3), 7, np.uint8))
    content = tiff(entries, [b"\x80" * 1000 + strip] * 100, tiled=False)
    assert refusal(content) == "`image` is a TIFF whose strips or tiles share their bytes; save it anew"


def test_a_directory_that_ends_early_is_refused():
    whole = tiff([*sized(16, 16)], [bytes(256)], tiled=False)
    for content in (whole[:8], whole[:-40], b"II*\0\xff\xff\xff\xff", b"II+\0\x08\0\0\0" + b"\xff" * 8 + whole):
        assert "a TIFF with a damaged directory" in refusal(content)
    assert "a BigTIFF that begins with the high byte" in refusal(b"MM\0+\0\x08\0\0" + bytes(8) + whole)


MANY = "has an entry of more than 1000 fractions; save it anew"


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_many_fractions_is_refused(big: bool):
    """Pillow makes an object of each, of those that it looks at."""
    half = 1 | 2 << 32
    content = tiff([*sized(16, 16), (282, RATIONAL, [half] * 1000)], [bytes(256)], tiled=False, big=big)
    assert decode(content, "image", LIMIT).size == (16, 16)
    content = tiff([*sized(16, 16), (282, RATIONAL, [half] * 1001)], [bytes(256)], tiled=False, big=big)
    assert refusal(content) == f"`image` is a TIFF whose directory {MANY}"


def test_directories_of_a_tiff_that_nothing_needs_are_not_read():
    many = struct.pack("<HHHLL", 1, 37500, RATIONAL, 200_000, 8) + bytes(4)  # of what stands from byte 8 on
    pixels = bytes(range(256)) * 6400
    start = 8 + len(pixels)
    strip: list[Entry] = [(273, LONG, 8), (279, LONG, len(pixels))]
    entries: list[Entry] = [*sized(1280, 1280), *strip, (34665, LONG, start), (34853, LONG, start)]
    content = tiff(entries, [pixels, many], tiled=False)
    tracemalloc.start()
    try:
        image = decode(content, "image", 10_000_000)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(np.asarray(image)[..., 0].ravel(), np.frombuffer(pixels, np.uint8))
    assert most < 20_000_000


def exif_of(entries: Sequence[tuple[int, int]]) -> bytes:
    """Tags of so many fractions each, one behind the other."""
    directory, at, data = b"", 8 + 2 + 12 * len(entries) + 4, b""
    for tag, count in entries:
        directory += struct.pack("<HHLL", tag, RATIONAL, count, at + len(data))
        data += struct.pack("<LL", 6, 1) * count
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + directory + bytes(4) + data


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_of_many_fractions_is_refused(kind: str):
    image = decode(encoded(kind, exif=exif_of([(274, 1), (282, 1000)])), "image", LIMIT)
    assert image.size == (48, 64)
    assert refusal(encoded(kind, exif=exif_of([(274, 1001)]))) == f"`image` is an image whose Exif {MANY}"


@pytest.mark.parametrize("picture", [JPEG[2:], b"\xff\xd9"], ids=["a picture", "none"])
def test_exif_of_many_fractions_in_a_jpeg_is_refused_before_it_is_opened(picture: bytes):
    """Pillow reads a resolution from it at once; what stands in several segments, it joins."""
    exif = exif_of([(282, 20_000), (296, 1)])
    parts = [segment(0xE1, b"Exif\0\0" + exif[at : at + 60_000]) for at in range(0, len(exif), 60_000)]
    assert len(parts) == 3
    assert refusal(JPEG[:2] + b"".join(parts) + picture) == f"`image` is an image whose Exif {MANY}"
    if picture != JPEG[2:]:
        return
    for few in (exif_of([(282, 1000)]), exif[:2000], exif[:10], b"II*\0", b"no directory", b""):
        content = JPEG[:2] + segment(0xE1, b"Exif\0\0" + few) + JPEG[2:]
        assert np.array_equal(np.asarray(decode(content, "image", LIMIT)), plain(JPEG))


PLANES = np.moveaxis(NOISE, 2, 0)
RGB: list[Entry] = [(258, SHORT, [8, 8, 8]), (262, SHORT, 2), (277, SHORT, 3)]
IN_STRIPS: list[Entry] = [(278, SHORT, 10)]
IN_TILES: list[Entry] = [(322, SHORT, 32), (323, SHORT, 16)]


def tiles(pixels: Array) -> list[bytes]:
    return [pixels[y : y + 16, x : x + 32].tobytes() for y in range(0, 48, 16) for x in range(0, 64, 32)]


def strips(pixels: Array) -> list[bytes]:
    return [pixels[y : y + 10].tobytes() for y in range(0, 48, 10)]


@pytest.mark.parametrize("compression", [1, DEFLATE])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("big", [False, True])
def test_every_layout_of_a_tiff_is_decoded(compression: int, tiled: bool, planar: bool, big: bool):
    cut, shape = (tiles, IN_TILES) if tiled else (strips, IN_STRIPS)
    pieces = [piece for pixels in (PLANES if planar else [NOISE]) for piece in cut(pixels)]
    pieces = [zlib.compress(piece) if compression == DEFLATE else piece for piece in pieces]
    entries: list[Entry] = [*sized(64, 48, compression), *RGB, *shape, (284, SHORT, 2 if planar else 1)]
    content = tiff(entries, pieces, tiled=tiled, big=big)
    assert np.array_equal(np.asarray(decode(content, "image", LIMIT)), NOISE)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits", "zstd"])
def test_the_first_of_several_pages_is_decoded(compression: str | None):
    content = encoded("TIFF", save_all=True, append_images=[Image.new("L", (9, 5))] * 3, compression=compression)
    assert np.array_equal(np.asarray(decode(content, "image", LIMIT)), NOISE)


def run_lengths(width: int, height: int, rows: bytes) -> bytes:
    """A BMP of 8 bits in run lengths, in 256 greens."""
    palette = b"".join(bytes((0, shade, 0, 0)) for shade in range(256))
    start = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + palette + rows


def test_a_bmp_in_run_lengths_is_decoded_where_it_is_small():
    image = decode(run_lengths(20, 3, b"\x14\x05\0\0" * 3 + b"\0\1"), "image", LIMIT)
    assert np.array_equal(np.asarray(image), np.full((3, 20, 3), (0, 5, 0), np.uint8))
    for width, height, rows in ((4000, 1000, b"\0\0" * 1000), (20, 3, b"\0\2\0\0" * 1_000_000)):
        content = run_lengths(width, height, rows + b"\0\1")
        with pytest.raises(InvalidInput, match="is a BMP in run lengths .* allowed are 4000000 of both together"):
            decode(content, "image", 50_000_000)
