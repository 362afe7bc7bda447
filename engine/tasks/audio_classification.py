"""Labels and scores of a recording.

`task_config` of the manifest: labels (names, in the order of the logits), features (engine/audio/features.py),
max_length (frames, where the features are a waveform).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.audio.task import AudioTask
from engine.text.scores import OPTIONS, best_labels, refuse_many, score_options

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tasks.items import Part, Request
    from engine.tensors import Arrays


class AudioClassification(AudioTask):
    """`{"audio": ...}`; a reply is what the pipeline's is, all labels unless `top_k` says how many."""

    summary: ClassVar[str] = "Labels and scores of a recording: commands, speakers, languages, sounds."
    auto_class: ClassVar[str] = "AutoModelForAudioClassification"
    option_names: ClassVar[tuple[str, ...]] = OPTIONS

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`top_k`: all labels unless it is given; `function_to_apply`: softmax unless it is given."""
        return score_options(payload, self.config["labels"])

    def parts(self, request: Request) -> list[Part]:
        """A row an item. Raises AnswerTooLarge before there is one."""
        refuse_many(len(request.items), self.config["labels"], request.options["top_k"], self.fewer)
        return super().parts(request)

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """`[{"label": ..., "score": ...}, ...]`, the best first."""
        return best_labels(outputs[0]["logits"], self.config["labels"], options)


TASK = AudioClassification
