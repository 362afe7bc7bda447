"""Ogg files that cost many times their bytes, or were damaged where the decoder says nothing."""

import io
import struct
from collections.abc import Sequence

import numpy as np
import pytest
import soundfile

from benchmarks.zoo.audio import RATE
from engine.audio import ogg
from engine.audio.decode import decode
from engine.errors import InvalidInput
from engine.tensors import Array

NOISE = np.random.default_rng(0).normal(0, 0.1, 4 * RATE).astype(np.float32)
SERIAL = 7


def file_of(samples: Array, subtype: str = "VORBIS", rate: int = RATE, quality: float = 0.5) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format="OGG", subtype=subtype, compression_level=quality)
    return content.getvalue()


def checksum(page: bytes) -> int:
    """RFC 3533's, bit by bit."""
    rest = 0
    for byte in page:
        rest ^= byte << 24
        for _ in range(8):
            rest = (rest << 1 ^ (0x104C11DB7 if rest >> 31 else 0)) & 0xFFFF_FFFF
    return rest


def page(body: bytes, segments: bytes, number: int, flags: int = 0, granule: int = 0, serial: int = SERIAL) -> bytes:
    head = b"OggS\0" + struct.pack("<BqLL", flags, granule, serial, number)
    rest = bytes([len(segments)]) + segments + body
    return head + struct.pack("<L", checksum(head + bytes(4) + rest)) + rest


def pages_of(packets: Sequence[bytes], most: int = 255) -> bytes:
    """Pages of the stream SERIAL, the first packet alone on its page, of `most` segments each."""
    pages, number = [], 0
    for run in (packets[:1], packets[1:]):
        segments = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in run)
        body, goes_on = b"".join(run), False
        for at in range(0, len(segments), most):
            lengths = segments[at : at + most]
            flags = 2 if not number else int(goes_on)
            pages.append(page(body[: sum(lengths)], lengths, number, flags, granule=number * 100))
            body, number, goes_on = body[sum(lengths) :], number + 1, lengths[-1] == 255
    return b"".join(pages)


def packets_of(content: bytes) -> list[bytes]:
    return list(ogg._packets(ogg._pages(content, 0)))


WHOLE = file_of(NOISE)
VORBIS = packets_of(WHOLE)


class Bits:
    """What is written last is the highest."""

    def __init__(self) -> None:
        self.value = self.size = 0

    def write(self, value: int, size: int) -> None:
        self.value |= value << self.size
        self.size += size


def with_codebooks(setup: bytes, more: int, entries: int, dimensions: int = 1, lookup: int = 0) -> bytes:
    """A setup header with further codebooks, which nothing uses. Their codes are a few bits each, in order."""
    bits = ogg._Bits(setup, 7)
    count = bits.take(8) + 1
    for _ in range(count):
        ogg._codebook(bits)
    end, value = bits._at, int.from_bytes(setup, "little")
    made = Bits()
    made.write(value & (1 << 56) - 1, 56)
    made.write(count - 1 + more, 8)
    made.write((value & (1 << end) - 1) >> 64, end - 64)
    length = (entries - 1).bit_length()  # the shortest of codes that are all of one length
    for _ in range(more):
        made.write(0x564342, 24)
        made.write(dimensions, 16)
        made.write(entries, 24)
        made.write(1, 1)
        made.write(length - 1, 5)
        made.write(entries, entries.bit_length())
        made.write(lookup, 4)
        if lookup:
            made.write(0, 64 + 4 + 1 + 1)  # one value of one bit, for all dimensions
    made.write(value >> end, 8 * len(setup) - end)
    return made.value.to_bytes(made.size + 7 >> 3, "little")


def with_setup(setup: bytes, most: int = 255) -> bytes:
    """The whole recording behind another setup header, in pages of `most` segments."""
    content = pages_of([*VORBIS[:2], setup], most)
    headers, sound = len(list(ogg._pages(content, 0))), WHOLE.split(b"OggS")[3:]
    for number, rest in enumerate(sound, headers):
        old = b"OggS" + rest[:10] + struct.pack("<LL", SERIAL, number)
        content += old + struct.pack("<L", checksum(old + bytes(4) + rest[22:])) + rest[22:]
    return content


@pytest.mark.parametrize(
    ("more", "entries", "dimensions", "sentence"),
    [
        (1, 1 << 22, 1, "have more than 16384 entries, or 131072 in all"),  # libvorbis overruns its stack
        (60, 1 << 19, 1, "have more than 16384 entries"),  # seconds, and hundreds of MB
        (10, 1 << 14, 1, "131072 in all"),
        (10, 1 << 10, 8191, "hold more than 1048576 values"),  # as many, of lookup tables
    ],
)
@pytest.mark.parametrize("most", [255, 1])
def test_codebooks_far_beyond_an_encoders_are_refused(
    more: int, entries: int, dimensions: int, sentence: str, most: int
):
    setup = with_codebooks(VORBIS[2], more, entries, dimensions, lookup=int(dimensions > 1))
    assert len(setup) < len(VORBIS[2]) + 2000
    with pytest.raises(InvalidInput, match=f"^`audio` is a Vorbis recording whose codebooks .*{sentence}.*encode it"):
        decode(with_setup(setup, most), RATE, 10, "audio")


@pytest.mark.parametrize("most", [255, 1])  # segments of a page: all headers on one, or 255 bytes on each
@pytest.mark.parametrize(("more", "entries", "dimensions"), [(0, 2, 1), (5, 1 << 14, 1), (50, 1 << 10, 15)])
def test_codebooks_of_usual_sizes_are_read(more: int, entries: int, dimensions: int, most: int):
    setup = with_codebooks(VORBIS[2], more, entries, dimensions, lookup=int(dimensions > 1))
    assert ogg.excess(with_setup(setup, most)) == ""
    assert np.array_equal(decode(with_setup(setup, most), RATE, 10, "audio"), decode(WHOLE, RATE, 10, "audio"))


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000])
def test_an_encoders_own_codebooks_are_far_below(channels: int, rate: int):
    for quality in (0.0, 0.4, 0.8, 1.0):
        setup = packets_of(file_of(NOISE[:1200].reshape(-1, channels), "VORBIS", rate, quality))[2]
        bits = ogg._Bits(setup, 7)
        entries, values = zip(*(ogg._codebook(bits) for _ in range(bits.take(8) + 1)), strict=True)
        assert max(entries) < ogg._MOST_ENTRIES / 2
        assert sum(entries) < ogg._MOST_IN_ALL / 4
        assert sum(values) < ogg._MOST_VALUES / 8
        assert int.from_bytes(setup, "little") >> bits._at & (1 << 22) - 1 == 0  # the one transform, always 0: all read


def test_a_setup_header_that_ends_early_is_damaged():
    for size in (7, 8, 20, 100, 2000):
        with pytest.raises(InvalidInput, match="`audio` cannot be decoded"):
            decode(with_setup(VORBIS[2][:size]), RATE, 10, "audio")


def opus_of(streams: int, coupled: int, channels: int, family: int = 255) -> bytes:
    """A head as RFC 7845 has it, and packets of 60 ms: 2 bytes a stream, a length in front but of the last."""
    head = b"OpusHead" + struct.pack("<BBHLhB", 1, channels, 0, 48_000, 0, family)
    head += bytes([streams, coupled, *range(channels)]) if family else b""
    tags = b"OpusTags" + struct.pack("<L", 4) + b"test" + bytes(4)
    packet = (b"\x58\x02\x8a\x51" * (streams - 1)) + b"\x58\x8a\x51"
    content = pages_of([head, tags])
    granules = [2880 * (index + 1) for index in range(10)]
    segments = b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
    return content + b"".join(page(packet, segments, 2 + index, 0, at) for index, at in enumerate(granules))


def test_opus_of_more_streams_than_are_heard_is_refused():
    """Each is decoded, and none but those of the mapping counted."""
    assert len(decode(opus_of(1, 0, 1, family=0), RATE, 10, "audio"))
    assert len(decode(opus_of(5, 0, 5), RATE, 10, "audio"))
    assert len(decode(opus_of(4, 2, 6, family=1), RATE, 10, "audio"))
    for streams, coupled, channels in ((255, 0, 1), (3, 0, 2), (1, 1, 1)):
        decoded = streams + coupled
        with pytest.raises(InvalidInput, match=f"is an Opus recording of which {decoded} channels are decoded and "):
            decode(opus_of(streams, coupled, channels), RATE, 10, "audio")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_damaged_page_is_not_left_out(subtype: str):
    """The decoder goes on with the next one, and of the first page with sound, or the last, it says nothing."""
    content = file_of(NOISE, subtype)
    starts = [at for at in range(len(content)) if content.startswith(b"OggS", at)]
    assert len(decode(content, RATE, 10, "audio")) == len(NOISE)
    for at in (*starts[1:], len(content)):
        broken = content[: at - 1] + bytes([content[at - 1] ^ 0x55]) + content[at:]
        with pytest.raises(InvalidInput, match="`audio` cannot be decoded; it is damaged or cut off"):
            decode(broken, RATE, 10, "audio")


def test_of_very_many_pages_the_first_and_the_last_are_looked_at():
    end = WHOLE.rindex(b"OggS")
    middle = page(b"", b"", 0, serial=123) * 10_000
    content = WHOLE[:end] + middle + WHOLE[end:]
    assert np.array_equal(decode(content, RATE, 10, "audio"), decode(WHOLE, RATE, 10, "audio"))
    with pytest.raises(InvalidInput, match="`audio` cannot be decoded"):
        decode(content[:-1] + bytes([content[-1] ^ 1]), RATE, 10, "audio")
    between = WHOLE.index(b"OggS", 4)
    with pytest.raises(InvalidInput, match="`audio` cannot be decoded"):  # headers that take as many
        decode(WHOLE[:between] + middle + WHOLE[between:], RATE, 10, "audio")


def test_other_streams_beside_the_first_and_what_is_behind_the_last_page_are_nobodys_affair():
    content = WHOLE
    second = content.index(b"OggS", 4)
    other = page(b"\x80theora" + bytes(35), b"\x2a", 0, flags=2, serial=123)
    whole = decode(content, RATE, 10, "audio")
    assert np.array_equal(decode(content[:second] + other + content[second:], RATE, 10, "audio"), whole)
    assert np.array_equal(decode(content + b"TAG" + bytes(125), RATE, 10, "audio"), whole)
