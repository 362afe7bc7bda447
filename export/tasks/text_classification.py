"""Classifiers of texts, offline. Only logits leave the graph; which function makes scores of them a request may say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.text.scores import default_function
from export.gate.judged import LabelsExport
from export.nodes import require_output, set_outputs
from export.tasks.base import Probe, labels
from export.text import TextExport, run, sample_texts, tokens_of

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays
    from export.source import Source


class TextClassificationExport(LabelsExport, TextExport):
    """Sequence classification models."""

    tag: ClassVar[str] = "text-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForSequenceClassification",)

    def head(self, graph: Any, source: Source) -> None:
        """The logits as they are."""
        require_output(graph, "logits", self.tag)
        set_outputs(graph, [("logits", "float32", ("batch", source.config.num_labels))])

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """Labels, the function that the model was trained with, and whether it can be asked about pairs."""
        names = labels(source.model, source.config)
        own = {"labels": names, "function": self.function(source), "pairs": _takes_pairs(source)}
        return {**super().task_config(source, outputs), **own}

    def probes(self, source: Source) -> Iterator[Probe]:
        """Texts, and the pairs among the examples, which the model may never have seen, but a job may ask for.

        No pairs where the task refuses them, for a segment that the model has no embedding of.
        """
        *others, longest = super().probes(source)
        yield from others
        for example in self.online.examples:
            if "text_pair" in example and _takes_pairs(source):
                text, pair = example["text"], example["text_pair"]
                yield Probe("pair", {"text": text, "text_pair": pair}, [tokens_of(source, text, pair)])
        yield longest

    def samples(self, source: Source) -> Iterator[Json]:
        """Texts."""
        return ({"text": text} for text in sample_texts(source))

    def reference(self, source: Source, model: Any, inputs: Mapping[str, Any]) -> Arrays | None:
        """The logits."""
        return run(model, inputs, "logits")

    def function(self, source: Source) -> str:
        """The model's own."""
        return default_function(source.config.problem_type, source.config.num_labels)


def _takes_pairs(source: Source) -> bool:
    """Whether the model knows every segment that its tokenizer makes of a pair; RoBERTas know one."""
    segments = tokens_of(source, "one", "two").get("token_type_ids")
    known = getattr(source.config, "type_vocab_size", None) or 0
    return segments is None or not known or int(segments.max()) < known


TASK = TextClassificationExport()
