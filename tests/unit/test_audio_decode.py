import base64
import io
import struct
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.zoo.audio import RATE
from engine.audio.decode import decode
from engine.audio.example import recording
from engine.errors import InvalidInput
from engine.tensors import Array

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "wav 24 bits": ("WAVEX", "PCM_24"),
    "wav floats": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", None),
}
EXACT = ("wav", "wav 24 bits", "wav floats", "flac")


def tone(seconds: float = 0.5, rate: int = RATE) -> Array:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def file_of(samples: Array, kind: str = "wav", rate: int = RATE) -> bytes:
    content = io.BytesIO()
    name, subtype = FORMATS[kind]
    soundfile.write(content, samples, rate, format=name, subtype=subtype)
    return content.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind: str):
    found = decode(file_of(tone(), kind), RATE, 10, "audio")
    assert found.dtype == np.float32
    assert found.shape == tone().shape
    # Lossy formats may shift a little; what they hold is still the tone.
    spectrum = np.abs(np.fft.rfft(found))
    assert spectrum.argmax() == np.abs(np.fft.rfft(tone())).argmax()
    if kind in EXACT:
        expected, _ = soundfile.read(io.BytesIO(file_of(tone(), kind)), dtype="float32")
        assert np.array_equal(found, expected)
        assert np.abs(found - tone()).max() < 1e-4


def test_channels_are_averaged():
    left, right = tone(), np.linspace(-0.5, 0.5, len(tone()), dtype=np.float32)
    found = decode(file_of(np.stack([left, right], 1), "wav floats"), RATE, 10, "audio")
    assert np.allclose(found, (left + right) / 2)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(rate: int):
    """A tone stays a tone of the same pitch, length and loudness, beside the edges."""
    found = decode(file_of(tone(0.5, rate), "wav floats", rate), RATE, 10, "audio")
    assert abs(len(found) - len(tone())) <= 1
    middle = slice(1000, 7000)
    assert np.abs(found[middle] - tone()[middle]).max() < 1e-3


def test_long_pieces_are_resampled_as_one():
    """More samples than are decoded at once: no seam, nothing lost."""
    whole = tone(20, 44_100)
    found = decode(file_of(whole, "wav floats", 44_100), RATE, 30, "audio")
    assert len(found) == 20 * RATE
    assert np.abs(found[1000:-1000] - tone(20)[1000:-1000]).max() < 1e-3


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_file_that_is_cut_off_gets_a_sentence(kind: str, share: float):
    content = file_of(np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32), kind)
    with pytest.raises(InvalidInput, match=r"`audio` (ends before|cannot be decoded|is not a WAV)"):
        decode(content[: int(len(content) * share)], RATE, 10, "audio")


def wav_that_says(data_size: int, file_size: int, content: bytes) -> bytes:
    at = content.index(b"data") + 4
    head = content[:4] + struct.pack("<I", file_size) + content[8:at]
    return head + struct.pack("<I", data_size) + content[at + 4 :]


@pytest.mark.parametrize(
    ("data_size", "file_size"),
    [
        (0xFFFF_FFFF, 0xFFFF_FFFF),  # ffmpeg
        (0x7FFF_F000, 0x7FFF_F024),  # SoX
        (0x8000_0000, 0x8000_0024),
        (0x7FFF_FFFF, 0),
        (0, 0),
        (0, 36),
    ],
)
def test_a_wav_file_that_was_streamed_has_no_length_and_is_whole(data_size: int, file_size: int):
    content = file_of(tone())
    found = decode(wav_that_says(data_size, file_size, content), RATE, 10, "audio")
    assert np.array_equal(found, decode(content, RATE, 10, "audio"))


def test_a_wav_file_without_samples_holds_none_whatever_follows():
    empty = file_of(np.zeros(0, np.float32)) + b"LIST\x0c\0\0\0INFOISFT\0\0\0\0"
    with pytest.raises(InvalidInput, match="holds no sound"):
        decode(wav_that_says(0, len(empty) - 8, empty), RATE, 10, "audio")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a WAV, FLAC, Ogg or MP3 recording"),
        (b"\x89PNG\r\n\x1a\n", "is not a WAV, FLAC, Ogg or MP3 recording"),
        (b"RIFF\0\0\0\0AVI LIST", "is not a WAV, FLAC, Ogg or MP3 recording"),
        (b"RIFF\0\0\0\0WAVE", "cannot be decoded"),
        (b"\xff\xfb\x90\x00" * 20, "ends before its own header says"),
        (b"\xff\xfb\x00\x00" * 200, "cannot be decoded; its first MP3 frame is damaged"),
        (b"\xff\xfd\x90\x00" * 200, "is not a WAV, FLAC, Ogg or MP3 recording"),  # layer II
        (file_of(np.zeros(0, np.float32)), "holds no sound"),
        (file_of(np.full(100, np.nan, np.float32), "wav floats"), "holds samples that are not numbers"),
        (file_of(np.zeros(RATE + 1, np.float32), "flac"), "is longer than the 1 s that are allowed (MAX_AUDIO_S)"),
        (file_of(np.zeros(192_000 * 2, np.float32), "flac", 192_000), "is longer than the 1 s"),
        (
            file_of(np.zeros((48_001, 8), np.float32), "flac", 655_350),
            "holds more samples than 1 s (MAX_AUDIO_S) do at",
        ),
        (file_of(np.zeros((1001, 1024), np.float32), "wav", 1000), "is longer than the 1 s"),
        (
            file_of(np.zeros(100_000, np.float32), "wav", 2_000_000_000),
            "has 2000000000 samples a second by its header, allowed are 1000 to 1000000; send it at another rate",
        ),
        (
            file_of(np.zeros(100, np.float32), "wav", 999),
            "has 999 samples a second by its header, allowed are 1000 to 1000000; send it at another rate",
        ),
    ],
)
def test_what_is_no_recording_gets_a_sentence(content: bytes, sentence: str):
    with pytest.raises(InvalidInput) as error:
        decode(content, RATE, 1, "audio")
    assert f"`audio` {sentence}" in str(error.value)


def test_ever_so_many_empty_tags_and_chunks_are_not_walked_through():
    content = file_of(np.zeros(RATE, np.float32))
    tag, chunk = b"ID3\3\0\0\0\0\0\0", b"JUNK\0\0\0\0"
    assert len(decode(10_000 * tag + content[:12] + 100 * chunk + content[12:], RATE, 1, "audio")) == RATE
    for many, said in (
        (10_001 * tag + content, "has more than 10000 ID3 tags in a row; send it without them"),
        (content[:12] + 10_001 * chunk + content[12:], "has more than 10000 chunks before its samples; save it anew"),
    ):
        with pytest.raises(InvalidInput, match=f"`audio` {said}"):
            decode(many, RATE, 1, "audio")


@pytest.mark.parametrize("kind", ["AIFF", "AU", "SDS"])
def test_other_formats_do_not_come_in_behind_an_id3_tag(kind: str):
    """libsndfile skips the tag and reads on with whichever of its parsers fits."""
    content = io.BytesIO()
    soundfile.write(content, tone(), RATE, format=kind, subtype="PCM_16")
    tag = b"ID3\x03\0\0\0\0\1\0" + bytes(128)
    with pytest.raises(InvalidInput, match="is not a WAV, FLAC, Ogg or MP3"):
        decode(tag + content.getvalue(), RATE, 10, "audio")
    assert len(decode(tag + file_of(tone(), "mp3"), RATE, 10, "audio"))


def of_unknown_length(flac: bytes) -> bytes:
    """As an encoder writes it that cannot go back: the number of samples is 0."""
    word = struct.unpack(">Q", flac[18:26])[0]
    return flac[:18] + struct.pack(">Q", word & ~0xF_FFFF_FFFF) + flac[26:]


@pytest.mark.parametrize("seconds", [0.5, 20, 4096 * 4 / RATE])  # the last ends with a whole frame
def test_flac_of_unknown_length_is_read_until_its_end(seconds: float):
    content = file_of(tone(seconds), "flac")
    found = decode(of_unknown_length(content), RATE, 30, "audio")
    assert np.array_equal(found, decode(content, RATE, 30, "audio"))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_flac_of_unknown_length_that_is_cut_off_gets_a_sentence(share: float):
    content = of_unknown_length(file_of(np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32), "flac"))
    with pytest.raises(InvalidInput, match="`audio` cannot be decoded"):
        decode(content[: int(len(content) * share)], RATE, 10, "audio")


def test_a_header_that_promises_too_little_does_not_help():
    """The length in a FLAC header may be 0, for unknown: the samples are counted."""
    with pytest.raises(InvalidInput, match="is longer than the 1 s"):
        decode(of_unknown_length(file_of(np.zeros(3 * RATE, np.float32), "flac")), RATE, 1, "audio")


@pytest.mark.parametrize("kind", ["vorbis", "opus", "flac"])
def test_several_recordings_in_one_file_are_refused(kind: str):
    """The decoder hears the first one only."""
    with pytest.raises(InvalidInput, match="`audio` holds several recordings, one behind the other; send them"):
        decode(file_of(tone(), kind) + file_of(tone(0.2), kind), RATE, 10, "audio")


@pytest.mark.parametrize("rate", [RATE, 44_100])
@pytest.mark.parametrize("value", [np.inf, 3e38, 1e20])
def test_samples_with_which_nothing_can_be_calculated_are_refused(value: float, rate: int):
    samples = np.full(rate, value, np.float32)
    samples[::3] *= 0.5
    with pytest.raises(InvalidInput, match=r"`audio` holds samples that are not numbers, or beyond 2.14748e\+09 where"):
        decode(file_of(samples, "wav floats", rate), RATE, 10, "audio")
    assert decode(file_of(32_768 * tone(), "wav floats"), RATE, 10, "audio").max() > 9000


SEEDS = [file_of(tone(0.05), kind) for kind in FORMATS]


@settings(max_examples=300)
@given(st.data())
def test_garbage_raises_nothing_but_invalid_input(data: st.DataObject):
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 8))):
        # Headers are where damage matters.
        at = data.draw(st.one_of(st.integers(0, 63), st.integers(0, len(content) - 1)))
        content[at] = data.draw(st.integers(0, 255))
    kept = bytes(content[: data.draw(st.integers(0, len(content)))]) + data.draw(st.binary(max_size=20))
    _decodes_or_refuses(kept)


@settings(max_examples=100)
@given(st.sampled_from([b"RIFF\xff\xff\0\0WAVEfmt ", b"fLaC", b"OggS", b"ID3", b"\xff\xfb"]), st.binary(max_size=300))
def test_noise_behind_the_first_bytes_neither(start: bytes, rest: bytes):
    _decodes_or_refuses(start + rest)


def _decodes_or_refuses(content: bytes) -> None:
    try:
        found: Any = decode(content, RATE, 2, "audio")
    except InvalidInput:
        return
    assert found.dtype == np.float32
    assert found.ndim == 1
    assert 0 < len(found) <= 2 * RATE + 64
    assert np.isfinite(found).all()


def test_the_example_is_a_recording():
    found = decode(base64.b64decode(recording(0.5)), RATE, 1, "audio")
    assert len(found) == RATE // 2
    assert 0.29 < np.abs(found).max() < 0.31
