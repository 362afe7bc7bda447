"""Models of natural language inference, offline: a classifier's graph, and which logits mean yes and no."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from export.errors import Refused
from export.pairs import require_length, taken
from export.tasks.base import Layout, Probe
from export.tasks.text_classification import TextClassificationExport
from export.text import sample_texts, texts, tokens_of

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from export.recipe import Recipe
    from export.source import Source

_LABELS = ("travel", "cooking")


class ZeroShotClassificationExport(TextClassificationExport):
    """Sequence classification models with a label that begins with `entail`; their class is text-classification's."""

    tag: ClassVar[str] = "zero-shot-classification"
    exporter: ClassVar[str] = "text-classification"

    def check(self, model: str, config: Any) -> None:
        """Look for the label."""
        super().check(model, config)
        if _entailment(config) is None:
            names = ", ".join(config.label2id or {}) or "none in label2id"
            raise Refused(
                f"{model} has no label that begins with entail, only {names}; export a model of natural language "
                "inference, or name its labels in config.json"
            )

    def max_length(
        self, recipe: Recipe, layout: Layout, processors: Mapping[str, Any], config: Any, positions: int | None
    ) -> int:
        """Tokens of the longest row. Raises Refused where no token of a text has room beside a hypothesis."""
        longest = super().max_length(recipe, layout, processors, config, positions)
        hypotheses = map(_hypothesis, [*_LABELS, *self._labels()])
        return require_length(self.tag, longest, taken(processors["tokenizer"], hypotheses) + 1, positions)

    def _labels(self) -> Iterator[str]:
        """Those of the examples, which the gate of plans asks for."""
        for example in self.online.examples:
            labels = example["candidate_labels"]
            yield from labels.split(", ") if isinstance(labels, str) else labels

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """Where the logits stand; transformers takes the first for contradiction, or the last."""
        entailment = _entailment(source.config)
        return {
            "max_length": source.max_length,
            "entailment": entailment,
            "contradiction": source.config.num_labels - 1 if entailment == 0 else 0,
        }

    def probes(self, source: Source) -> Iterator[Probe]:
        """Every text with two labels, a row each."""
        for label, text in texts(source, [{"texts": ["My phone is broken.", "混合的文本 🙂"]}]):
            if text:
                yield self.probe(source, label, text)

    def probe(self, source: Source, label: str, text: str) -> Probe:
        """`text` with two labels."""
        pairs = [tokens_of(source, text, _hypothesis(name), truncation="only_first") for name in _LABELS]
        return Probe(label, {"text": text, "candidate_labels": list(_LABELS)}, pairs)

    def samples(self, source: Source) -> Iterator[Json]:
        """Every text with one label."""
        return ({"text": text, "candidate_labels": [_LABELS[0]]} for text in sample_texts(source))


def _hypothesis(label: str) -> str:
    return f"This example is {label}."


def _entailment(config: Any) -> int | None:
    return next((int(at) for name, at in (config.label2id or {}).items() if name.lower().startswith("entail")), None)


TASK = ZeroShotClassificationExport()
