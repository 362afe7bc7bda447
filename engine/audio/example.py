"""Recordings to try things with, made on the spot."""

from __future__ import annotations

import base64
import io
import wave

import numpy as np

_LOUDNESS = 0.3


def recording(seconds: float, hertz: float = 440.0, rate: int = 16_000) -> str:
    """A WAV file in base64: a tone that rises by an octave, 16 bits a sample."""
    time = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * hertz * (time + time**2 / (2 * seconds))
    samples = (_LOUDNESS * 32767 * np.sin(phase)).astype("<i2")
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return base64.b64encode(content.getvalue()).decode()
