"""Labels and scores of a recording.

`task_config` of the manifest: labels (names, in the order of the logits), features (engine/audio/features.py),
max_length (frames, where the features are a waveform).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.audio.task import AudioTask
from engine.tasks import payload as check
from engine.text.scores import FUNCTIONS, best_labels

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tasks.items import Part
    from engine.tensors import Arrays


class AudioClassification(AudioTask):
    """`{"audio": ...}`; a reply is what the pipeline's is, all labels unless `top_k` says how many."""

    summary: ClassVar[str] = "Labels and scores of a recording: commands, speakers, languages, sounds."
    auto_class: ClassVar[str] = "AutoModelForAudioClassification"
    option_names: ClassVar[tuple[str, ...]] = ("top_k", "function_to_apply")

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`top_k`: all labels unless it is given; `function_to_apply`: softmax unless it is given."""
        labels = len(self.config["labels"])
        return {
            "top_k": min(labels, check.whole_number(payload, "top_k", 1, 1_000_000) or labels),
            "function": check.choice(payload, "function_to_apply", list(FUNCTIONS)),
        }

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """`[{"label": ..., "score": ...}, ...]`, the best first."""
        return best_labels(outputs[0]["logits"], self.config["labels"], options["function"], options["top_k"])


TASK = AudioClassification
