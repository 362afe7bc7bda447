"""What an Ogg file asks of its decoder, read before any decoder sees it: the first stream's headers, and checksums.

A Vorbis header may describe tables of gigabytes in a few bytes, and libvorbis keeps some of them on the stack. A page
whose checksum is wrong is left out by libogg without a word. The walk looks at every byte a bounded number of times.

Sources: RFC 3533 (Ogg); the Vorbis I specification, 3.2 and 4.2; RFC 7845 (Opus in Ogg); and, for what a decoder does
with a file that keeps to none of them, libogg's framing.c and libvorbis' codebook.c.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

_MAGIC = b"OggS"
_HEADER = 27  # bytes of a page in front of the table of its segments
_CONTINUED = 1  # the flag of a page that begins within a packet
_MOST_PAGES = 10_000  # that are looked at; an encoder makes one a second or so, and as many of a picture of 40 MB
_WHOLE = 255  # the length of a segment that another one follows
_VORBIS, _VORBIS_SETUP, _OPUS = b"\x01vorbis", b"\x05vorbis", b"OpusHead"
_CODEBOOK = 0x564342
# At any rate, quality and number of channels libvorbis writes up to 6,561 entries, 19,413 in all, and 85,928 values.
_MOST_ENTRIES, _MOST_IN_ALL, _MOST_VALUES = 1 << 14, 1 << 17, 1 << 20
_LONGEST_CODE = 32  # bits
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def excess(content: bytes) -> str:
    """What is too much of the recording that an Ogg file begins with, to be read behind "is", or "" where nothing is.

    Raises ValueError, or one of a few other errors, for a damaged file.
    """
    every = _pages(content, 0)
    pages = islice(every, _MOST_PAGES)
    packets = _packets(pages)
    first, what = next(packets, b""), ""
    if first.startswith(_OPUS):
        what = _of_opus(first)
    if first.startswith(_VORBIS):
        _, setup = next(packets, b""), next(packets, b"")
        what = _of_setup(setup)
    deque(pages, maxlen=0)  # for their checksums
    if next(every, None):  # of a later page that is left out the decoder notices it, but for the last
        deque(_pages(content, content.rfind(_MAGIC)), maxlen=0)
    return what


class _Page(NamedTuple):
    flags: int
    stream: int
    number: int
    segments: bytes
    """Their lengths."""
    body: bytes


def _pages(content: bytes, at: int) -> Iterator[_Page]:
    """Every page from `at` on; what is behind the last one is nobody's affair."""
    while content.find(_MAGIC, at) >= 0:
        if not content.startswith(_MAGIC + b"\0", at):
            raise ValueError
        flags, stream, number, checksum, count = struct.unpack_from("<xxxxxBxxxxxxxxLLLB", content, at)
        segments = content[at + _HEADER : at + _HEADER + count]
        body = at + _HEADER + count
        end = body + sum(segments)
        if _checksum(content[at : at + 22] + bytes(4) + content[at + 26 : end]) != checksum:
            raise ValueError
        yield _Page(flags, stream, number, segments, content[body:end])
        at = end


def _checksum(page: bytes) -> int:
    """Ogg's: zlib's with the bits of every byte, and of the result, in the other order, and nothing inverted."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRRORED), "big")


def _packets(pages: Iterator[_Page]) -> Iterator[bytes]:
    """The packets of the stream that begins first, while nothing is amiss; else decoders may read something else."""
    stream = number = None
    parts: list[bytes] = []
    for page in pages:
        if stream is None:
            stream, number = page.stream, page.number
        if page.stream != stream:
            continue
        if page.number != number or bool(parts) != bool(page.flags & _CONTINUED):
            raise ValueError
        number += 1
        at = 0
        for length in page.segments:
            parts.append(page.body[at : at + length])
            at += length
            if length < _WHOLE:
                yield b"".join(parts)
                parts = []


def _of_opus(head: bytes) -> str:
    channels, family = head[9], head[18]
    decoded = head[19] + head[20] if family else channels  # streams, and those that have two channels
    if decoded > channels:
        return f"an Opus recording of which {decoded} channels are decoded and {channels} heard"
    return ""


def _of_setup(packet: bytes) -> str:
    if not packet.startswith(_VORBIS_SETUP):  # always the third; libvorbis takes none at another place
        raise ValueError
    bits = _Bits(packet, len(_VORBIS_SETUP))
    in_all = in_lookups = 0
    for _ in range(bits.take(8) + 1):
        entries, values = _codebook(bits)
        in_all += entries
        in_lookups += values
        if entries > _MOST_ENTRIES or in_all > _MOST_IN_ALL:
            most = f"{_MOST_ENTRIES} entries, or {_MOST_IN_ALL} in all"
            return f"a Vorbis recording whose codebooks have more than {most}"
        if in_lookups > _MOST_VALUES:
            return f"a Vorbis recording whose codebooks hold more than {_MOST_VALUES} values"
    return ""


def _codebook(bits: _Bits) -> tuple[int, int]:
    """The entries of the next one, and the values that they stand for. Where these are too many it is not read on."""
    if bits.take(24) != _CODEBOOK:
        raise ValueError
    dimensions, entries = bits.take(16), bits.take(24)
    if entries > _MOST_ENTRIES:
        return entries, 0
    _skip_lengths(bits, entries)
    lookup = bits.take(4)
    if not lookup:
        return entries, 0
    bits.skip(64)
    size = bits.take(4) + 1
    bits.skip(1 + size * (_root(entries, dimensions) if lookup == 1 else entries * dimensions))
    return entries, entries * dimensions


def _skip_lengths(bits: _Bits, entries: int) -> None:
    """Those of the entries' codes."""
    if bits.take(1):  # in order: how many of each length
        bits.skip(5)
        for _ in range(_LONGEST_CODE):
            if entries <= 0:
                break
            entries -= bits.take(entries.bit_length())
        if entries:
            raise ValueError
    elif bits.take(1):
        for _ in range(entries):
            if bits.take(1):
                bits.skip(5)
    else:
        bits.skip(5 * entries)


def _root(entries: int, dimensions: int) -> int:
    """The largest number whose power of `dimensions` is at most `entries`."""
    root = round(float(entries ** (1 / dimensions)))
    return root if pow(root, dimensions) <= entries else root - 1


class _Bits:
    """Read from a packet, the lowest of a byte first."""

    def __init__(self, packet: bytes, start: int) -> None:
        self._packet, self._at = packet, 8 * start

    def take(self, count: int) -> int:
        """The next `count` bits as a number. Raises ValueError behind the end."""
        first, end = self._at >> 3, self._at + count + 7 >> 3
        if end > len(self._packet):
            raise ValueError
        value = int.from_bytes(self._packet[first:end], "little") >> (self._at & 7)
        self._at += count
        return value & ((1 << count) - 1)

    def skip(self, count: int) -> None:
        self._at += count
