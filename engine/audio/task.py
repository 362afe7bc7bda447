"""Base of the tasks on sound: every recording is decoded, at the model's rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from engine.audio.decode import decode
from engine.audio.example import recording
from engine.audio.features import features_from
from engine.config import Limits
from engine.tasks.items import Part
from engine.tasks.media import MediaTask

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from engine.tensors import Array


class AudioTask(MediaTask):
    """`{"audio": ...}` or `{"audios": [...]}`: WAV, FLAC, Ogg or MP3, as base64, data URI or https URL.

    One row a recording unless a subclass makes more.
    """

    one: ClassVar[str] = "audio"
    many: ClassVar[str] = "audios"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"audio": recording(0.5)},
        {"audios": [recording(0.3, 300.0), recording(1.0, 900.0)]},
    )

    def __init__(self, config: Mapping[str, Any], limits: Limits) -> None:
        super().__init__(limits)
        self.config = config
        self.features = features_from(config)

    @classmethod
    def from_bundle(cls, bundle: Bundle, limits: Limits) -> Self:
        """Read the task_config, which the subclass documents beside `features` (engine/audio/features.py)."""
        return cls(bundle.manifest.task_config, limits).answered_by(bundle)

    def part(self, field: str, content: bytes, options: Mapping[str, Any]) -> Part:
        """The rows of one file, through its samples."""
        return self.part_of(field, decode(content, self.features.rate, self.limits.max_audio_s, field), options)

    def part_of(self, field: str, samples: Array, options: Mapping[str, Any]) -> Part:
        """The rows of one recording, float32 samples at the model's rate; one row unless a subclass makes more."""
        return Part([self.features.row(samples, field)])
