"""Speech to text with CTC models: a token a frame leaves the graph, the rest is done here.

`task_config` of the manifest: tokens (by id), vocabulary (engine/audio/ctc.py), features (engine/audio/features.py),
max_length (frames).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.audio.ctc import CtcVocabulary
from engine.audio.features import Waveform
from engine.audio.task import AudioTask
from engine.config import Limits
from engine.errors import InvalidInput
from engine.tasks import payload as check
from engine.tasks.items import Part
from engine.text.tokens import MOST_OVERLAP

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Array, Arrays

_LONGEST_S = 86_400.0
_FREE_SAMPLES = 1 << 24
"""Windows that hold no more may repeat a recording as often as they like: 64 MB."""


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of a recording and how much of it, in samples, only lends context to the rest."""

    samples: Array
    left: int = 0
    right: int = 0

    def frames(self, stride: int) -> slice:
        """The frames that count, rounded as the pipeline does (rescale_stride)."""
        count = len(self.samples)
        frames = round(count * (1 / stride))
        return slice(round(self.left / count * frames), frames - round(self.right / count * frames))


class AutomaticSpeechRecognition(AudioTask):
    """`{"audio": ...}`; options are the pipeline's: `chunk_length_s`, `stride_length_s`, `return_timestamps`."""

    summary: ClassVar[str] = "Speech to text with CTC models, with timestamps, and in windows where it is long."
    auto_class: ClassVar[str] = "AutoModelForCTC"
    option_names: ClassVar[tuple[str, ...]] = ("chunk_length_s", "stride_length_s", "return_timestamps")
    features: Waveform

    def __init__(self, config: Mapping[str, Any], limits: Limits) -> None:
        super().__init__(config, limits)
        self._vocabulary = CtcVocabulary(config["tokens"], config["vocabulary"])

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`windows`: length, left and right context in samples, or None; `timestamps`: None, char or word."""
        timestamps = payload.get("return_timestamps")
        if timestamps is False:
            timestamps = None
        if timestamps is not None:
            check.choice(payload, "return_timestamps", ("char", "word"))
        return {"windows": self._windows(payload), "timestamps": timestamps}

    def _windows(self, payload: dict[str, Any]) -> tuple[int, int, int] | None:
        length_s = check.number(payload, "chunk_length_s", 0.0, _LONGEST_S, 0.0)
        around = payload.get("stride_length_s")
        if not length_s:
            if around is not None:
                raise InvalidInput("`stride_length_s` goes with `chunk_length_s`")
            return None
        if around is None:
            around = length_s / 6  # the pipeline's default
        pair = around if isinstance(around, list) else [around, around]
        if len(pair) != 2:
            raise InvalidInput(f"`stride_length_s` must be a number or a list of two, got {len(pair)}")
        left_s, right_s = (check.number({"stride_length_s": one}, "stride_length_s", 0, _LONGEST_S, 0) for one in pair)
        length, left, right = (self._aligned(seconds) for seconds in (length_s, left_s, right_s))
        if self.features.frames(length) < 1:
            least = ceil(self.features.min_samples / self.features.stride) * self.features.stride / self.features.rate
            raise InvalidInput(f"`chunk_length_s` must be at least {least:.4g}, what the model needs, or 0")
        if length <= left + right:
            raise InvalidInput(f"`chunk_length_s` ({length_s:g}) must be more than both sides of `stride_length_s`")
        if length > self.features.max_samples:
            most = self.features.max_samples / self.features.rate
            raise InvalidInput(f"`chunk_length_s` must be at most {most:.4g}, what the model takes at once")
        return length, left, right

    def _aligned(self, seconds: float) -> int:
        stride = self.features.stride
        return round(seconds * self.features.rate / stride) * stride

    def part_of(self, field: str, samples: Array, options: Mapping[str, Any]) -> Part:
        """A row for each window; `data` are the frames of each that count."""
        windows = options["windows"]
        if windows is None:
            if len(samples) > self.features.max_samples:
                raise InvalidInput(
                    f"`{field}` lasts {len(samples) / self.features.rate:.4g} s, the model takes "
                    f"{self.features.max_samples / self.features.rate:.4g} s at once; set `chunk_length_s`"
                )
            return Part([self.features.row(samples, field)], [slice(None)])
        length, left, right = windows
        count = len(samples) // (length - left - right) + 1
        self.refuse_rows(count)
        if count * length > max(_FREE_SAMPLES, MOST_OVERLAP * len(samples)):
            raise InvalidInput(
                f"windows that overlap so far hold `{field}` more than {MOST_OVERLAP} times over; "
                "lower `stride_length_s`"
            )
        found = list(_cut(samples, length, left, right))
        # What is too short for a frame says nothing, unless it is all there is.
        kept = [window for window in found if self.features.frames(len(window.samples)) > 0] or found[:1]
        rows = [self.features.row(window.samples, field) for window in kept]
        return Part(rows, [window.frames(self.features.stride) for window in kept])

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """`{"text": ...}`, and `chunks` with timestamps in seconds where they were asked for."""
        pieces = [
            output["tokens"][: row.length][frames]
            for row, frames, output in zip(part.rows, part.data, outputs, strict=True)
        ]
        characters = self._vocabulary.characters(np.concatenate(pieces))
        reply: dict[str, Any] = {"text": self._vocabulary.text(characters)}
        if options["timestamps"] is not None:
            spans = characters if options["timestamps"] == "char" else self._vocabulary.words(characters)
            reply["chunks"] = [
                {"text": span.text, "timestamp": [self._seconds(span.start), self._seconds(span.end)]} for span in spans
            ]
        return reply

    def _seconds(self, frame: int) -> float:
        return frame * self.features.stride / self.features.rate


def _cut(samples: Array, length: int, left: int, right: int) -> Iterator[Window]:
    """Windows of `length` samples that overlap, as the pipeline cuts them (chunk_iter)."""
    for start in range(0, len(samples), length - left - right):
        piece = samples[start : start + length]
        is_last = start + length >= len(samples)
        before = left if start else 0
        if len(piece) > before:
            yield Window(piece, before, 0 if is_last else right)
        if is_last:
            return


TASK = AutomaticSpeechRecognition
