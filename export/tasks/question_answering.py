"""Extractive question answering, offline: a logit a token for where an answer begins and one for where it ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.tasks.question_answering import WINDOW
from engine.text.scores import softmax
from export.errors import Refused
from export.gate.measures import SCORES, Measure, agreement, compare_scores
from export.nodes import require_output, set_outputs
from export.pairs import require_length, taken
from export.tasks.base import Layout, Probe
from export.text import TOKENS, TextExport, run, sample_texts, texts

if TYPE_CHECKING:
    from pathlib import Path

    from engine.tasks.base import Json
    from engine.tensors import Arrays
    from export.recipe import Recipe
    from export.source import Source

_OUTPUTS = ("start_logits", "end_logits")
_QUESTION = "What is the answer?"
_OVERLAP = 128
"""Tokens that windows share, or half of a window where that is less: the pipelines' default, and the worker's."""


class QuestionAnsweringExport(TextExport):
    """Models with a span head."""

    tag: ClassVar[str] = "question-answering"
    heads: ClassVar[tuple[str, ...]] = ("ForQuestionAnswering",)
    measures: ClassVar[Sequence[Measure]] = SCORES
    measures_of_all: ClassVar[Sequence[Measure]] = (
        # The share of rows whose best place for a beginning and for an end is the same.
        Measure("spans", 0.99, 0.8, at_least=True, column="same span", half_limit=0.97),
    )

    def processors(self, folder: Path, model: str, layout: Layout, recipe: Recipe) -> Mapping[str, Any]:
        """The tokenizer, which must put the question first."""
        found = super().processors(folder, model, layout, recipe)
        if found["tokenizer"].padding_side != "right":
            raise Refused(
                f"{model} pads on the left, so that its context comes before the question; choose a model that pads on "
                "the right"
            )
        return found

    def max_length(
        self, recipe: Recipe, layout: Layout, processors: Mapping[str, Any], config: Any, positions: int | None
    ) -> int:
        """Tokens of the longest row. Raises Refused where a window would be no longer than what it shares."""
        longest = super().max_length(recipe, layout, processors, config, positions)
        beside = taken(processors["tokenizer"], [_QUESTION, *self._questions()])
        return require_length(self.tag, longest, beside + min(beside, _OVERLAP) + 1, positions)

    def _questions(self) -> Iterator[str]:
        """Those of the examples, which the gate of plans asks."""
        for example in self.online.examples:
            questions = example["question"]
            yield from [questions] if isinstance(questions, str) else questions

    def head(self, graph: Any, source: Source) -> None:
        """The logits as they are."""
        for name in _OUTPUTS:
            require_output(graph, name, self.tag)
        set_outputs(graph, [(name, "float32", TOKENS) for name in _OUTPUTS])

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """The token that stands for no answer."""
        return {**super().task_config(source, outputs), "cls_token_id": source.tokenizer.cls_token_id}

    def probes(self, source: Source) -> Iterator[Probe]:
        """One question about every text; a long one gives a row a window."""
        contexts = [(f"example {n}", example["context"]) for n, example in enumerate(self.online.examples)]
        for label, context in [*contexts, *texts(source, [])]:
            if context:
                yield self.probe(source, label, context)

    def probe(self, source: Source, label: str, text: str) -> Probe:
        """`text` as the context."""
        return Probe(label, {"question": _QUESTION, "context": text}, _windows(source, text))

    def samples(self, source: Source) -> Iterator[Json]:
        """One question about every text."""
        return ({"question": _QUESTION, "context": text} for text in sample_texts(source))

    def reference(self, source: Source, model: Any, inputs: Mapping[str, Any]) -> Arrays | None:
        """Both logits."""
        return run(model, inputs, *_OUTPUTS)

    def compare(self, source: Source, expected: Arrays, found: Arrays) -> Sequence[float]:
        """The worse figures of start and end, as probabilities over the row."""
        both = [compare_scores(softmax(expected[name]), softmax(found[name])) for name in _OUTPUTS]
        return max(one[0] for one in both), min(one[1] for one in both)

    def compare_all(self, source: Source, expected: Sequence[Arrays], found: Sequence[Arrays]) -> Sequence[float]:
        """How often both ends of the best span are the same."""
        ends = [
            min(agreement(one[name][None], other[name][None], 1e-4) for name in _OUTPUTS)
            for one, other in zip(expected, found, strict=True)
        ]
        return [sum(ends) / len(ends)]


def _windows(source: Source, context: str) -> list[Mapping[str, Any]]:
    """The windows as transformers' tokenizer cuts them, a mapping each, with a batch of one."""
    import torch

    length = min(source.max_length, WINDOW)
    made = source.tokenizer(
        _QUESTION,
        context,
        truncation="only_second",
        max_length=length,
        stride=min(length // 2, _OVERLAP),
        return_overflowing_tokens=True,
    )
    if "token_type_ids" in made:
        made["token_type_ids"] = _segments(made.encodings)
    names = [name for name in made if name != "overflow_to_sample_mapping"]
    rows = zip(*(made[name] for name in names), strict=True)
    return [{name: torch.tensor([ids]) for name, ids in zip(names, row, strict=True)} for row in rows]


def _segments(windows: Sequence[Any]) -> list[list[int]]:
    """The segments of every window, as the tokenizer's template gives them to the first one.

    To the others tokenizers gives those of no template: 1 to the context, even where the template knows 0 alone.
    """
    first = windows[0]
    if 1 not in first.sequence_ids:  # no token of the context
        return [window.type_ids for window in windows]
    start = first.sequence_ids.index(1)
    behind = first.sequence_ids[::-1].index(1)
    before, of_context = first.type_ids[:start], first.type_ids[start]
    ends = first.type_ids[len(first) - behind :]
    return [[*before, *[of_context] * (len(window) - start - behind), *ends] for window in windows]


TASK = QuestionAnsweringExport()
