"""Recordings in WAV, FLAC, Ogg (Vorbis, Opus) and MP3 become samples: one channel, at the model's rate.

Samples equal those of transformers' pipelines where nothing has to be resampled. Where it has, soxr does it at high
quality, piece by piece; torchaudio and ffmpeg, which the pipelines use, filter a little differently.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

from engine.errors import InvalidInput
from engine.tensors import Array

_SAMPLES_AT_ONCE = 1 << 18  # of all channels: a few flac frames of silence may stand for gigabytes of samples
_DENSEST = 384_000  # samples a second: two channels at 192 kHz, eight at 48; flac has up to 14 times as many
_UNKNOWN_SIZE = 0xFFFF_0000  # what is streamed into a WAV file has such a size in its header: until the end
_MAGIC = re.compile(rb"RIFF....WAVE|fLaC|OggS|\xff[\xe2-\xff]", re.DOTALL)
_ID3_HEADER = 10  # bytes; the last four hold the length of the rest of the tag, seven bits each
_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
"""What libsndfile may have found. It reads two dozen formats; its other parsers are of little use here."""


def decode(content: bytes, rate: int, max_s: float, field: str) -> Array:
    """The samples of a recording as float32 in [-1, 1], channels averaged, `rate` of them a second.

    `field` names the recording in errors. Raises InvalidInput for what is no recording, is cut off, holds no sample, or
    is longer than `max_s` seconds, or holds more samples than those should; decoding ends there.
    """
    unknown = InvalidInput(f"`{field}` is not a WAV, FLAC, Ogg or MP3 recording")
    if not _MAGIC.match(content, _behind_tags(content)):
        raise unknown
    cut_off = InvalidInput(f"`{field}` ends before its own header says; send the whole file")
    if _is_cut(content):  # first, for of an Ogg file that is cut libsndfile may give any length
        raise cut_off
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.format not in _FORMATS:
                raise unknown
            _refuse_long(file, file.frames, max_s, field)
            samples = _resampled(_mono(file, max_s, field), file.samplerate, rate)
            expected = file.frames
            decoded = file.tell() if file.seekable() else expected
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise InvalidInput(f"`{field}` cannot be decoded; it is damaged or cut off") from error
    if decoded < expected:
        raise cut_off
    if not len(samples):
        raise InvalidInput(f"`{field}` holds no sound")
    if not np.isfinite(samples).all():
        raise InvalidInput(f"`{field}` holds samples that are not numbers")
    return samples


def _behind_tags(content: bytes) -> int:
    """Where the recording begins: libsndfile skips ID3 tags, and takes any format that it knows behind them."""
    at = 0
    while content[at : at + 3] == b"ID3" and at + _ID3_HEADER <= len(content):
        size = 0
        for byte in content[at + 6 : at + _ID3_HEADER]:
            size = size << 7 | byte & 0x7F
        at += _ID3_HEADER + size
    return at


def _mono(file: soundfile.SoundFile, max_s: float, field: str) -> Iterator[Array]:
    """The recording in pieces; headers may say anything about its length, so it is counted."""
    count, frames = 0, max(1, _SAMPLES_AT_ONCE // file.channels)
    while len(piece := file.read(frames, dtype="float32", always_2d=True)):
        count += len(piece)
        _refuse_long(file, count, max_s, field)
        yield piece[:, 0] if file.channels == 1 else piece.mean(axis=1)


def _resampled(pieces: Iterator[Array], found: int, wanted: int) -> Array:
    if found == wanted:
        return np.concatenate([*pieces, np.zeros(0, np.float32)])
    stream = soxr.ResampleStream(found, wanted, 1, dtype="float32", quality="HQ")
    made = [stream.resample_chunk(piece) for piece in pieces]
    made.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(made)


def _refuse_long(file: soundfile.SoundFile, frames: int, max_s: float, field: str) -> None:
    """Raise InvalidInput where `frames` of `file` are more than `max_s` seconds, or cost more than these should."""
    if frames / file.samplerate > max_s:
        raise InvalidInput(f"`{field}` is longer than the {max_s:g} s that are allowed (MAX_AUDIO_S)")
    if frames * file.channels > max_s * _DENSEST:
        raise InvalidInput(
            f"`{field}` holds more samples than {max_s:g} s (MAX_AUDIO_S) do at {_DENSEST} a second of all channels; "
            "send fewer channels or a lower rate"
        )


def _is_cut(content: bytes) -> bool:
    """Whether the end is missing, where the decoder does not say: it takes what is left of a WAV file for all of it."""
    if content[:4] == b"RIFF":
        return _wav_is_cut(content)
    if content[:4] == b"OggS":
        return _ogg_is_cut(content)
    return False


def _wav_is_cut(content: bytes) -> bool:
    at = 12
    while at + 8 <= len(content):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        if content[at : at + 4] == b"data":
            return size < _UNKNOWN_SIZE and at + 8 + size > len(content)
        at += 8 + size + size % 2
    return False


def _ogg_is_cut(content: bytes) -> bool:
    """Whether the last page lacks its end: the lengths of its parts stand in a table from byte 27 on."""
    page = content[content.rfind(b"OggS") :]
    parts = page[26] if len(page) > 26 else 0
    return len(page) < 27 + parts + sum(page[27 : 27 + parts])
