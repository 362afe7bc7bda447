"""What a JPEG, TIFF or PNG asks of its decoder, read before any decoder sees it: markers, or the first directory.

What is refused costs many times what its bytes and pixels do, or is read in one way by Pillow and in another by the
library that decodes. Both walks are linear in the file's size. Exif, of whichever format, is a TIFF's directory too.

Sources: ITU-T T.81, annex B; TIFF 6.0, sections 2, 8 and 15; the BigTIFF design of libtiff; and, for what each does
with a file that keeps to none of them, Pillow's JpegImagePlugin and TiffImagePlugin, libjpeg's jdmarker.c, libtiff's
tif_dirread.c.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_JPEG = b"\xff\xd8\xff"
_MOST_SCANS = 100  # a progressive JPEG has about 10; each takes all pixels, and 80 bytes can be one
_MOST_SEGMENTS = 10_000  # of up to 64 kB each: many times what profile, XMP, depth map and signature need
_MOST_EXIF = 150  # one by the standard; for each that follows Pillow copies all that came before
_MOST_STRAY = 100_000  # bytes in front of the picture that belong to no segment: Pillow takes them one by one
# Those that have a length, to Pillow as to libjpeg, and the end. All others stand alone, or end the decoding.
_MARKER = re.compile(rb"\xff[\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe]")
_END, _SCAN, _APP1 = 0xD9, 0xDA, 0xE1

_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_PROFILES = 10  # one by the standard; Pillow unpacks each, a kilobyte to a megabyte

_BYTE_ORDERS = {b"II*\0": "<", b"II\0*": "<", b"II+\0": "<", b"MM\0*": ">", b"MM*\0": ">", b"MM\0+": ">"}
"""By how a TIFF begins, for Pillow."""
_MOST_ENTRIES = 4096  # of a directory
_MOST_PIECES = 200_000  # 65,535 strips of a row in 3 planes, or 50 million pixels in the smallest tiles, 16 x 16
_MOST_PLANES = 6  # Pillow's limit
_WIDTH, _LENGTH, _COMPRESSION, _ROWS, _TILE_WIDTH, _TILE_LENGTH = 256, 257, 259, 278, 322, 323
_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 273, 279, 324, 325
_LAYOUT = {_WIDTH, _LENGTH, _COMPRESSION, _ROWS, _TILE_WIDTH, _TILE_LENGTH, _STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES}
_LAYOUT |= {258, 262, 266, 277, 284, 338, 339}  # bits, colours, fill order, samples, planes, extra samples, format
_FRACTIONS = (5, 10)  # kinds; Pillow makes an object of each fraction, a hundred times as slowly as it reads bytes
_MOST_FRACTIONS = 1000  # of an entry; hardly one has more than a dozen
_MANY_FRACTIONS = f"has an entry of more than {_MOST_FRACTIONS} fractions"
_EXIF = b"Exif\0\0"
_KINDS = {3: "H", 4: "L"}  # SHORT, LONG
_LONG8 = {16: "Q"}  # of BigTIFF alone


def excess(content: bytes, max_pixels: int) -> str:
    """What is too much of the first image of a file, to be read behind "is", or "" where nothing is.

    An image may have `max_pixels`, and the tiles of a TIFF twice as many.
    """
    if content.startswith(_JPEG):
        return _of_jpeg(content)
    if content.startswith(_PNG) and content.count(b"iCCP") > _MOST_PROFILES:  # pixels are packed: by chance none say so
        return f"a PNG of more than {_MOST_PROFILES} colour profiles"
    return _of_tiff(content, max_pixels) if content[:4] in _BYTE_ORDERS else ""


def excess_of_exif(exif: bytes) -> str:
    """What is too much of an image's Exif, with its prefix or without, in the same words."""
    exif = exif.removeprefix(_EXIF).removeprefix(_EXIF)
    return f"an image whose Exif {_MANY_FRACTIONS}" if _has_many_fractions(exif) else ""


def _has_many_fractions(content: bytes) -> bool:
    """Whether the first directory of a TIFF file, or of what is built like one, has an entry of too many fractions."""
    order = _BYTE_ORDERS.get(content[:4])
    if order is None or len(content) < 16:
        return False
    is_big = content[2] == ord("+")
    start, number, form = (8, "Q", "HHQQ") if is_big else (4, "H", "HHLL")
    (at,) = struct.unpack_from(order + ("Q" if is_big else "L"), content, start)
    if at + 8 > len(content):
        return False
    (count,) = struct.unpack_from(order + number, content, at)
    at += struct.calcsize(order + number)
    size = struct.calcsize(order + form)
    whole = content[at : at + size * min(count, (len(content) - at) // size)]
    # Longer than all of the file an entry is passed over.
    return any(
        kind in _FRACTIONS and _MOST_FRACTIONS < values <= len(content) // 8
        for _, kind, values, _ in struct.iter_unpack(order + form, whole)
    )


def _of_jpeg(content: bytes) -> str:
    scans = segments = stray = 0
    exif: list[bytes] = []
    end = len(_JPEG) - 1
    while marker := _MARKER.search(content, end):
        at, kind = marker.end(), content[marker.end() - 1]
        if not scans:
            stray += marker.start() - end
        end = at
        if kind == _END and scans:  # what follows, such as a video, is not decoded; in front of a scan Pillow reads on
            break
        if kind != _END:
            end += max(2, int.from_bytes(content[at : at + 2], "big"))
            segments += 1
            scans += kind == _SCAN
            if kind == _APP1 and not scans and content.startswith(_EXIF, at + 2):
                exif.append(content[at + 2 + len(_EXIF) : end])
        if scans > _MOST_SCANS:
            return f"a JPEG of more than {_MOST_SCANS} scans"
        if segments > _MOST_SEGMENTS or len(exif) > _MOST_EXIF:
            return f"a JPEG of more than {_MOST_SEGMENTS} segments, or {_MOST_EXIF} of Exif"
        if stray > _MOST_STRAY:
            break
    if not scans and stray + len(content) - end > _MOST_STRAY:
        return f"a JPEG with more than {_MOST_STRAY} bytes in front of the picture that belong to nothing"
    return excess_of_exif(b"".join(exif))


def _of_tiff(content: bytes, max_pixels: int) -> str:
    if content.startswith(b"MM\0+"):  # Pillow looks for its directory elsewhere than libtiff
        return "a BigTIFF that begins with the high byte, which cannot be decoded"
    try:
        if _has_many_fractions(content):
            return f"a TIFF whose directory {_MANY_FRACTIONS}"
        tags = _Directory.read(content)
        width, length = tags.number(_WIDTH), tags.number(_LENGTH)
        tile_width, tile_length = tags.number(_TILE_WIDTH, width), tags.number(_TILE_LENGTH, length)
        strips = _ceil(length, tags.number(_ROWS, length) or length)
        across, down = _ceil(width, tile_width), _ceil(length, tile_length)
        is_compressed = tags.count(_COMPRESSION) > 1 or tags.number(_COMPRESSION, 1) != 1
        listed = max(tags.total(_STRIP_BYTES, strips), tags.total(_TILE_BYTES, across * down)) if is_compressed else 0
    except (struct.error, KeyError, ValueError, OverflowError, ZeroDivisionError):
        return "a TIFF with a damaged directory"
    for table, pieces in ((_STRIPS, strips), (_TILES, across * down)):
        most = min(_MOST_PIECES, _MOST_PLANES * pieces)
        if tags.count(table) > most:  # Pillow decodes every one, and paints it over the others
            return f"a TIFF of {tags.count(table)} strips or tiles, allowed are {most}"
    pixels = across * tile_width * down * tile_length  # each tile is decoded whole, however little of it the image has
    if pixels > 2 * max_pixels and width * length <= max_pixels:
        return f"a TIFF whose tiles have {pixels} pixels, allowed are {2 * max_pixels} (twice MAX_PIXELS)"
    if listed > len(content) + pixels:  # some may share their bytes, as white ones do, whose bytes are few
        return "a TIFF whose strips or tiles share their bytes"
    return ""


@dataclass(frozen=True)
class _Directory:
    """The entries of a TIFF's first directory that say how its pixels lie: kind, count, and where the value is."""

    content: bytes
    order: str
    entries: Mapping[int, tuple[str, int, int]]
    room: int
    """Bytes of an entry's own value; what is longer is elsewhere."""

    @classmethod
    def read(cls, content: bytes) -> _Directory:
        """Raises one of several errors where it is damaged, or holds what decoders read in different ways."""
        order, is_big = _BYTE_ORDERS[content[:4]], content[2] == ord("+")
        room, start, number, form = (8, 8, "Q", "HHQ") if is_big else (4, 4, "H", "HHL")
        kinds = _KINDS | _LONG8 if is_big else _KINDS
        (at,) = struct.unpack_from(order + ("Q" if is_big else "L"), content, start)
        (count,) = struct.unpack_from(order + number, content, at)
        if count > _MOST_ENTRIES:
            raise ValueError
        at += struct.calcsize(order + number)
        entries: dict[int, tuple[str, int, int]] = {}
        for _ in range(count):
            tag, kind, values = struct.unpack_from(order + form, content, at)
            at += struct.calcsize(order + form) + room
            if tag in _LAYOUT:
                if tag in entries:
                    raise ValueError
                entries[tag] = kinds[kind], values, at - room
        return cls(content, order, entries, room)

    def count(self, tag: int) -> int:
        return self.entries[tag][1] if tag in self.entries else 0

    def number(self, tag: int, default: int | None = None) -> int:
        if tag not in self.entries and default is not None:
            return default
        kind, count, at = self.entries[tag]
        if count != 1:
            raise ValueError
        return int(struct.unpack_from(self.order + kind, self.content, at)[0])

    def total(self, tag: int, pieces: int) -> int:
        """What the strips or tiles have in all planes, each at most the file."""
        if tag not in self.entries:
            return 0
        kind, count, at = self.entries[tag]
        dtype = np.dtype(f"{self.order}u{struct.calcsize('<' + kind)}")
        if count * dtype.itemsize > self.room:
            (at,) = struct.unpack_from(self.order + ("Q" if self.room == 8 else "L"), self.content, at)
        values = np.frombuffer(self.content, dtype, min(count, _MOST_PLANES * pieces), at)
        return int(np.minimum(values, len(self.content)).sum(dtype=np.uint64))


def _ceil(size: int, step: int) -> int:
    return -(-size // step)
