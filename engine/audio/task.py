"""Base of the tasks on sound: the items are recordings, and waiting for one that is fetched happens in a thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from engine.audio.decode import decode
from engine.audio.example import recording
from engine.audio.features import features_from
from engine.config import Limits
from engine.tasks import media
from engine.tasks.items import ItemsTask, Part, Request

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from engine.tensors import Array


class AudioTask(ItemsTask):
    """`{"audio": ...}` or `{"audios": [...]}`: WAV, FLAC, Ogg or MP3, as base64, data URI or https URL.

    One row a recording unless a subclass makes more.
    """

    one: ClassVar[str] = "audio"
    many: ClassVar[str] = "audios"
    noun: ClassVar[str] = media.FORMS
    blocking: ClassVar[bool] = True
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
        return cls(bundle.manifest.task_config, limits)

    def item(self, value: Any, name: str, payload: dict[str, Any]) -> Any:
        """The field's name, for errors, and what stands in it."""
        return name, media.require(value, name)

    def parts(self, request: Request) -> list[Part]:
        """Every recording's samples, at the model's rate, in rows. Raises InvalidInput, Unreachable."""
        contents = media.each_bytes_of(request.items, self.limits, request.spent)
        room, parts = media.Room(self.limits), []
        for (name, _), content in zip(request.items, contents, strict=True):
            samples = decode(content, self.features.rate, self.limits.max_audio_s, name)
            parts.append(self.part(name, samples, request.options))
            room.take(parts[-1].rows, name)
        return parts

    def part(self, name: str, samples: Array, options: Mapping[str, Any]) -> Part:
        """The rows of one recording; one unless a subclass makes more."""
        return Part([self.features.row(samples, name)])
