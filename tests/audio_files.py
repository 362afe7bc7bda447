"""Recordings to test with, at the rate of the zoo's models."""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile

from benchmarks.zoo.audio import RATE
from engine.tensors import Array


def sounds() -> dict[str, Array]:
    """Recordings at RATE, float32, of many lengths."""
    draw = np.random.default_rng(7)

    def chirp(seconds: float, low: float, high: float, loudness: float = 0.3) -> Array:
        at = np.arange(int(seconds * RATE)) / RATE
        return loudness * np.sin(2 * np.pi * at * (low + (high - low) * at / (2 * seconds)))

    made = {
        "chirp": chirp(1.0, 100, 3000),
        "tone": chirp(0.61, 440, 440),
        "noise": 0.1 * draw.standard_normal(int(0.83 * RATE)),
        "short": chirp(0.03, 800, 900),
        "mixed": np.concatenate([chirp(0.4, 300, 200), np.zeros(2000), 0.2 * draw.standard_normal(7001)]),
        "long": np.concatenate([chirp(0.7, 150 * n, 100 + 90 * n * n) for n in (1, 3, 2, 5, 4)]),
    }
    return {name: samples.astype(np.float32) for name, samples in made.items()}


def encoded(samples: Array, rate: int = RATE, kind: str = "WAV", subtype: str | None = "FLOAT") -> str:
    """A file of `samples` in base64; WAV of floats holds them as they are."""
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=kind, subtype=subtype)
    return base64.b64encode(content.getvalue()).decode()
