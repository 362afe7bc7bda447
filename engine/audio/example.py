"""Recordings to try things with, made on the spot."""

from __future__ import annotations

import base64
import io
import wave

import numpy as np

from engine.tensors import Array

_LOUDNESS = 0.3
_RATE = 16_000  # samples a second


def recording(seconds: float, hertz: float = 440.0) -> str:
    """A WAV file in base64: a tone that rises by an octave, 16 bits a sample."""
    time = np.arange(int(seconds * _RATE)) / _RATE
    phase = 2 * np.pi * hertz * (time + time**2 / (2 * seconds))
    return wav((_LOUDNESS * 32767 * np.sin(phase)).astype("<i2"), _RATE)


def wav(samples: Array, rate: int) -> str:
    """A WAV file of one channel in base64; `samples` are int16."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return base64.b64encode(content.getvalue()).decode()
