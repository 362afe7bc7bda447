"""From samples to what a model reads, as transformers' feature extractors make it.

`features` of a bundle's task_config:

    {"kind": "waveform", "rate", "normalize", "field", "stride"}   wav2vec2 and its relatives: the samples themselves
    {"kind": "fbank", "rate", "normalize", "bins", "frames", "mean", "std"}   AST: a log-mel spectrogram of fixed size

`rate` is in samples a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from engine.errors import BundleError, InvalidInput
from engine.tensors import Array, Row

_VARIANCE_FLOOR = 1e-7  # Wav2Vec2FeatureExtractor's


class Features(Protocol):
    """Makes rows of recordings."""

    rate: int

    def row(self, samples: Array, field: str) -> Row:
        """The row for `samples` (float32, one channel, at `rate`). Raises InvalidInput; `field` names the recording."""
        ...


def features_from(config: Mapping[str, Any]) -> Features:
    """What the task_config `config` asks for. Raises BundleError for a kind that this version does not have."""
    features = config["features"]
    if features["kind"] == "waveform":
        return Waveform(features, int(config["max_length"]))
    if features["kind"] == "fbank":
        return Fbank(features)
    raise BundleError(f"the bundle's features are of kind {features['kind']!r}, known are waveform and fbank")


class Waveform:
    """Samples, scaled to mean 0 and variance 1 where the model wants it.

    A row's length is in frames, of which the model's convolutions make one every `stride` samples, each from `field`
    samples. Its true number of samples goes along, for the graph leaves padding out of everything.
    """

    def __init__(self, config: Mapping[str, Any], max_frames: int) -> None:
        self.rate = int(config["rate"])
        self.stride = int(config["stride"])
        self._normalize = bool(config["normalize"])
        self.min_samples = int(config["field"])
        """What the model makes a frame of."""
        self.max_samples = max_frames * self.stride + self.min_samples - 1
        """What the model takes at once."""

    def frames(self, samples: int) -> int:
        """Frames that the model makes of so many samples; below 1 when they are too few."""
        return (samples - self.min_samples) // self.stride + 1

    def row(self, samples: Array, field: str) -> Row:
        """The row for a recording that the model takes at once."""
        frames = self.frames(len(samples))
        if frames < 1:
            least = self.min_samples / self.rate
            raise InvalidInput(f"`{field}` lasts {len(samples) / self.rate:g} s, the model needs at least {least:g} s")
        if len(samples) > self.max_samples:
            most = self.max_samples / self.rate
            raise InvalidInput(f"`{field}` lasts {len(samples) / self.rate:g} s, the model takes {most:.4g} s at once")
        if self._normalize:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + _VARIANCE_FLOOR)
        return Row({"input_values": samples, "input_length": np.array(len(samples), np.int32)}, frames)


class Fbank:
    """Kaldi's log-mel filter bank: frames of 25 ms every 10 ms, cut or padded with zeros to `frames` of them.

    The arithmetic is that of transformers without torchaudio (ASTFeatureExtractor, audio_utils.spectrogram), on all
    frames at once.
    """

    _WINDOW, _HOP, _FFT = 400, 160, 512  # samples; fixed there, whatever the rate
    _LOWEST_HZ = 20
    _PREEMPHASIS = 0.97
    _FLOOR = 1.192092955078125e-07  # Kaldi's: the epsilon of float32

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.rate = int(config["rate"])
        self._frames = int(config["frames"])
        self._bins = int(config["bins"])
        self._normalize = bool(config["normalize"])
        self._mean, self._std = float(config["mean"]), float(config["std"])
        self._hann = np.hanning(self._WINDOW)
        self._filters = _mel_filters(self._FFT, self._bins, self._LOWEST_HZ, self.rate // 2, self.rate)

    def row(self, samples: Array, field: str) -> Row:
        """The row for a recording of any length; what is behind the last frame is not heard."""
        spectrogram = np.zeros((self._frames, self._bins), np.float32)
        if len(samples) >= self._WINDOW:
            found = self._log_mel(samples)
            spectrogram[: len(found)] = found
        if self._normalize:
            spectrogram = (spectrogram - self._mean) / (self._std * 2)
        return Row({"input_values": spectrogram}, 1)

    def _log_mel(self, samples: Array) -> Array:
        heard = samples[: self._WINDOW + self._HOP * (self._frames - 1)].astype(np.float64)
        frames = np.lib.stride_tricks.sliding_window_view(heard, self._WINDOW)[:: self._HOP]
        centred = frames - frames.mean(axis=1, keepdims=True)
        emphasised = centred.copy()
        emphasised[:, 1:] -= self._PREEMPHASIS * centred[:, :-1]
        emphasised[:, 0] *= 1 - self._PREEMPHASIS
        # Rounded where transformers rounds, for next to the floor a logarithm shows it.
        spectrum = np.fft.rfft(emphasised * self._hann, self._FFT).astype(np.complex64)
        power = np.abs(spectrum).astype(np.float64) ** 2
        log_mel: Array = np.log(np.maximum(self._FLOOR, power @ self._filters)).astype(np.float32)
        return log_mel


def _mel_filters(fft: int, bins: int, lowest_hz: float, highest_hz: float, rate: int) -> Array:
    """Triangles on Kaldi's mel scale, 1127 ln(1 + f / 700); shape (fft / 2 + 1, bins)."""

    def mel(hertz: Any) -> Any:
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    corners = np.linspace(mel(lowest_hz), mel(highest_hz), bins + 2)
    at = mel(rate / fft * np.arange(fft // 2 + 1))[:, None]
    widths = np.diff(corners)
    rising = (at - corners[:-2]) / widths[:-1]
    falling = (corners[2:] - at) / widths[1:]
    filters: Array = np.maximum(0.0, np.minimum(rising, falling))
    return filters
