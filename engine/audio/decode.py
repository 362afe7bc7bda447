"""Recordings in WAV, FLAC, Ogg (Vorbis, Opus) and MP3 become samples: one channel, at the model's rate.

Samples are those of transformers' pipelines, to the last bits of lossy formats, for one channel at the model's rate.
Several are averaged (ffmpeg, which the pipelines use, weights them: stereo is sqrt 2 louder there). Other rates are
resampled by soxr at high quality, piece by piece; torchaudio and ffmpeg filter a little differently.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

from engine.audio.files import cut_off, damaged, readable
from engine.errors import InvalidInput
from engine.tensors import Array

_SAMPLES_AT_ONCE = 1 << 18  # of all channels: a few flac frames of silence may stand for gigabytes of samples
_DENSEST = 384_000  # samples a second: two channels at 192 kHz, eight at 48; flac has up to 14 times as many
_LOWEST_RATE = 1000  # speech needs eight times as much; of far lower ones a few bytes are minutes of sound
_HIGHEST_RATE = 1_000_000  # of far higher ones soxr's filter has millions of taps, even for a few samples
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's length of a FLAC file that was streamed: it is read until the end
LOUDEST = 2.0**31  # of samples that should lie between -1 and 1: integers of 32 bits, not scaled
_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
"""What libsndfile may have found. It reads two dozen formats; its other parsers are of little use here."""


def decode(content: bytes, rate: int, max_s: float, field: str) -> Array:
    """The samples of a recording as float32 in [-1, 1], channels averaged, `rate` of them a second.

    `field` names the recording in errors. Raises InvalidInput for what is no recording, is cut off, holds no sample, or
    is longer than `max_s` seconds, or holds more samples than those should; decoding ends there.
    """
    content = readable(content, max_s, field)
    try:
        with _Recording(io.BytesIO(content)) as file:
            if file.format not in _FORMATS:
                raise InvalidInput(f"`{field}` is not a WAV, FLAC, Ogg or MP3 recording")
            if not _LOWEST_RATE <= file.samplerate <= _HIGHEST_RATE:
                raise InvalidInput(
                    f"`{field}` has {file.samplerate} samples a second by its header, allowed are {_LOWEST_RATE} to "
                    f"{_HIGHEST_RATE}; send it at another rate"
                )
            if file.frames != _UNKNOWN_FRAMES:
                _refuse_long(file, file.frames, max_s, field)
            samples = _resampled(_mono(file, max_s, field), file.samplerate, rate)
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise damaged(field) from error
    if not len(samples):
        raise InvalidInput(f"`{field}` holds no sound")
    if not max(samples.max(), -samples.min()) <= LOUDEST:  # so NaN is refused too
        raise InvalidInput(
            f"`{field}` holds samples that are not numbers, or beyond {LOUDEST:g} where sound lies between -1 and 1"
        )
    return samples


class _Recording(soundfile.SoundFile):  # type: ignore[misc]  # which has no types
    """Read once, from its beginning.

    Where it may seek, soundfile does after every read, to where it is already. An MP3 decoder then lacks what the
    next frames refer to, and in FLAC of unknown length the end cannot be sought.
    """

    def seekable(self) -> bool:
        return False


def _mono(file: soundfile.SoundFile, max_s: float, field: str) -> Iterator[Array]:
    """The recording in pieces; headers may say anything about its length, so it is counted."""
    count, frames = 0, max(1, _SAMPLES_AT_ONCE // file.channels)
    while len(piece := file.read(min(frames, file.frames - count), dtype="float32", always_2d=True)):
        count += len(piece)
        _refuse_long(file, count, max_s, field)
        yield piece[:, 0] if file.channels == 1 else piece.mean(axis=1)
    if count < file.frames != _UNKNOWN_FRAMES:
        raise cut_off(field)


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
