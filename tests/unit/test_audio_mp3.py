"""MP3 files as encoders, streams and people make them: without a length, one behind the other, with tags and damage."""

import io
import struct

import numpy as np
import pytest
import soundfile

from engine.audio.decode import decode
from engine.errors import InvalidInput
from engine.tensors import Array

LAME_SKIPS = 576 + 529  # samples of an encoder's and the decoder's delay, which a LAME tag leaves out
ID3V2 = b"ID3\x04\0\0\0\0\0\x21TSSE\0\0\0\x0f\0\0\x03Lavf60.16.100\0" + bytes(8)
WITH_FOOTER = ID3V2[:5] + b"\x10" + ID3V2[6:] + b"3DI\x04\0\x10\0\0\0\x21"
ID3V1 = b"TAG" + bytes(125)
SEVERAL = "`audio` holds MP3 frames of several rates or channels, or something else between them; send one"


def sound(seconds: float, rate: int) -> Array:
    """Loud and quiet, so that frames have many sizes, with a tone, which makes them use what is left of others."""
    count = int(seconds * rate)
    draw = np.random.default_rng(3)
    loudness = np.repeat(draw.choice([0.0003, 0.01, 0.3], 40), count // 40 + 1)[:count]
    noise = loudness * draw.standard_normal(count) * (np.arange(count) % rate < rate / 2)
    return (noise + 0.2 * np.sin(np.arange(count) * 0.05)).astype(np.float32)


def mp3(samples: Array, rate: int, mode: str = "VARIABLE") -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.5)
    return content.getvalue()


def second_frame(content: bytes) -> int:
    """Where it begins: the first one holds nothing but tags, in less than 192 bytes."""
    return content.index(content[:2], 192)


def without_length(content: bytes) -> bytes:
    return content[second_frame(content) :]


def in_wav(content: bytes, rate: int, size: int | None = None) -> bytes:
    """A WAV file that holds MP3 (MPEGLAYER3WAVEFORMAT) and says that it has `size` bytes, or what it has."""
    kind = struct.pack("<4sLHHLLHHHHLHHH", b"fmt ", 30, 0x55, 1, rate, 16_000, 1, 0, 12, 1, 2, 417, 1, 1393)
    chunk = struct.pack("<4sL", b"data", len(content) if size is None else size) + content + bytes(len(content) % 2)
    behind = b"LIST\x0c\0\0\0INFOISFT\0\0\0\0" if size is None else b""
    body = b"WAVE" + kind + b"fact\x04\0\0\0\0\0\0\0" + chunk + behind
    return b"RIFF" + struct.pack("<L", len(body) if size is None else size) + body


def frames(content: bytes) -> int:
    """As the Info or Xing tag counts them, itself left out."""
    at = max(content.find(b"Info"), content.find(b"Xing"))
    return int.from_bytes(content[at + 8 : at + 12], "big")


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
@pytest.mark.parametrize("rate", [44_100, 48_000, 24_000, 16_000, 8_000])
def test_without_a_length_every_frame_is_heard(rate: int, mode: str, channels: int):
    content = mp3(np.stack([sound(3, rate)] * channels, 1), rate, mode)
    whole = decode(content, rate, 10, "audio")
    assert len(whole) == 3 * rate
    found = decode(without_length(content), rate, 10, "audio")
    assert len(found) == frames(content) * (1152 if rate >= 32_000 else 576)
    assert np.abs(found[LAME_SKIPS:][: len(whole)] - whole).max() < 1e-5


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("size", [None, 0xFFFF_FFFF])
def test_in_a_wav_file_it_is_all_heard_as_well(mode: str, size: int | None):
    content = mp3(sound(3, 44_100), 44_100, mode)
    for file in (content, without_length(content)):
        wav = in_wav(file, 44_100, size)
        assert np.array_equal(decode(wav, 44_100, 10, "audio"), decode(file, 44_100, 10, "audio"))
    with pytest.raises(InvalidInput, match="ends before its own header says"):
        decode(wav[: len(wav) // 2], 44_100, 10, "audio")
    with pytest.raises(InvalidInput, match="is longer than the 2 s that are allowed"):
        decode(wav, 44_100, 2, "audio")


@pytest.mark.parametrize("before", [b"", ID3V2, ID3V2 * 2, WITH_FOOTER])
@pytest.mark.parametrize("behind", [b"", ID3V1, b"APETAGEX" + bytes(300), bytes(2000)])
def test_tags_are_no_sound(before: bytes, behind: bytes):
    content = mp3(sound(1, 44_100), 44_100)
    for file in (content, without_length(content)):
        expected = decode(file, 44_100, 10, "audio")
        assert np.array_equal(decode(before + file + behind, 44_100, 10, "audio"), expected)


def test_a_first_frame_without_the_encoders_delay_is_left_out_alone():
    content = mp3(sound(1, 44_100), 44_100)
    expected = decode(without_length(content), 44_100, 10, "audio")
    lame, end = content.index(b"LAME"), second_frame(content)
    assert np.array_equal(decode(content[:lame] + bytes(end - lame) + content[end:], 44_100, 10, "audio"), expected)
    fraunhofers = (content[:4] + bytes(32) + b"VBRI").ljust(end, b"\0") + content[end:]
    assert np.array_equal(decode(fraunhofers, 44_100, 10, "audio"), expected)


def test_pieces_of_a_long_one_have_no_seams():
    """Frames refer to what is left of earlier ones: a decoder that is told to seek lacks it."""
    content = mp3(sound(20, 44_100), 44_100)
    expected, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    assert len(expected) == 20 * 44_100
    assert np.abs(decode(content, 44_100, 30, "audio") - expected).max() < 1e-5


@pytest.mark.parametrize("between", [b"", ID3V2, ID3V1 + ID3V2, WITH_FOOTER])
def test_all_of_several_files_one_behind_the_other_is_heard(between: bytes):
    """As ffmpeg hears them, so the second one's Info frame is silence, and its delay and padding are heard."""
    content = mp3(sound(1, 44_100), 44_100)
    whole = decode(content, 44_100, 10, "audio")
    found = decode(content + between + content, 44_100, 10, "audio")
    assert len(found) == (2 * frames(content) + 1) * 1152 - LAME_SKIPS
    assert np.abs(found[: len(whole)] - whole).max() < 1e-5
    second = (frames(content) + 1) * 1152
    assert np.abs(found[second : second + len(whole)] - whole).max() < 1e-5


@pytest.mark.parametrize(
    "rest",
    [
        mp3(sound(0.5, 24_000), 24_000),
        mp3(np.stack([sound(0.5, 44_100)] * 2, 1), 44_100),
        bytes(100) + mp3(sound(0.5, 44_100), 44_100),
        b"\xff\xfb" * 10_001,
    ],
    ids=["another rate", "more channels", "something else between", "endless beginnings"],
)
def test_what_the_decoder_would_not_hear_is_refused(rest: bytes):
    content = mp3(sound(1, 44_100), 44_100)
    for file in (content, without_length(content)):
        with pytest.raises(InvalidInput, match=SEVERAL):
            decode(file + rest, 44_100, 10, "audio")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_without_a_length_a_frame_that_is_cut_tells(share: float):
    content = without_length(mp3(sound(1, 44_100), 44_100))
    at = content.index(b"\xff\xfb", int(len(content) * share)) - 2
    with pytest.raises(InvalidInput, match="`audio` ends before its own header says"):
        decode(content[:at], 44_100, 10, "audio")


def test_the_length_is_that_of_the_samples():
    content = mp3(sound(3, 44_100), 44_100)
    assert len(decode(content, 44_100, 3, "audio")) == 3 * 44_100
    for file, max_s in ((content, 2.999), (without_length(content), 3), (content * 3, 3), (content * 3, 6)):
        with pytest.raises(InvalidInput, match=f"is longer than the {max_s:g} s that are allowed"):
            decode(file, 44_100, max_s, "audio")
