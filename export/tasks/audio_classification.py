"""Classifiers of recordings, offline. Logits leave the graph; which function makes scores of them a request may say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from export.audio import AudioExport
from export.gate.judged import LabelsExport
from export.model_files.json_files import read_processor
from export.nodes import require_output, set_outputs
from export.tasks.base import labels

if TYPE_CHECKING:
    from engine.tensors import Arrays
    from export.source import Source


class AudioClassificationExport(LabelsExport, AudioExport):
    """Sequence classification on speech models, and on spectrograms (AST); scores are softmax's, as the pipeline's."""

    tag: ClassVar[str] = "audio-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForAudioClassification",)

    def claims(self, root: Path, config: Mapping[str, Any]) -> bool:
        """A classifier with a feature extractor: a speech model's class is named like a text model's."""
        classifies = any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or [])
        return classifies and not {"feature_extractor_type", "sampling_rate"}.isdisjoint(read_processor(root))

    def head(self, graph: Any, source: Source) -> None:
        """The logits as they are."""
        require_output(graph, "logits", self.tag)
        set_outputs(graph, [("logits", "float32", ("batch", source.config.num_labels))])

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """Features and labels."""
        return {**super().task_config(source, outputs), "labels": labels(source.model, source.config)}

    def reference(self, source: Source, model: Any, inputs: Mapping[str, Any]) -> Arrays | None:
        """The logits."""
        return {"logits": model(**inputs).logits[0].numpy()}


TASK = AudioClassificationExport()
