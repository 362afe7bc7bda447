"""Labels that the caller invents, scored by a model of natural language inference: whether the text entails them.

`task_config` of the manifest: entailment and contradiction (places among the logits), max_length (tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.errors import InvalidInput
from engine.tasks import payload as check
from engine.tasks.items import Part, Request
from engine.text.scores import softmax
from engine.text.task import TextTask

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays

_TEMPLATE = "This example is {}."
_ENTRY = len('"",0.0,')
"""Bytes that a label and its score have in a reply at least, beside the label's own."""


class ZeroShotClassification(TextTask):
    """`{"text": ..., "candidate_labels": [...]}` or `texts`. A row a label: the text, then the hypothesis."""

    summary: ClassVar[str] = "Scores of labels that the request brings along, by natural language inference."
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    cut: ClassVar[str] = "only_first"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "My phone is broken and I need it today.", "candidate_labels": ["urgent", "phone", "cooking"]},
        {"texts": ["Goal!", "Rain."], "candidate_labels": "sports, weather", "multi_label": True},
    )
    option_names: ClassVar[tuple[str, ...]] = ("candidate_labels", "hypothesis_template", "multi_label", "truncate")
    fewer: ClassVar[str] = "send fewer texts or labels at once"

    def item(self, value: Any, name: str, payload: dict[str, Any]) -> str:
        """A text that is not empty."""
        text = check.string(value, name, self.limits.max_chars)
        if not text:
            raise InvalidInput(f"`{name}` must not be empty")
        return text

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`candidate_labels`: a list, or words with commas between; `hypothesis_template` with {} for the label."""
        value = payload.get("candidate_labels")
        if value is None:
            raise InvalidInput("`candidate_labels` is missing: a list of strings, or one with commas between them")
        if isinstance(value, str):
            value = [label.strip() for label in value.split(",") if label.strip()]
        template = check.template(payload, "hypothesis_template", _TEMPLATE, 1000)
        if len(template) != 2:  # what stands before the label, and behind it
            raise InvalidInput("`hypothesis_template` must hold {} once, where the label goes")
        labels = check.texts(value, "candidate_labels", self.limits.max_items, 1000)
        return {
            **super().options(payload),
            "labels": labels,
            "hypotheses": [label.join(template) for label in labels],  # the same strings for all texts
            "template": template,
            "multi_label": check.boolean(payload, "multi_label", False),
        }

    def texts(self, item: Any, options: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
        """A pair a label."""
        return [(item, hypothesis) for hypothesis in options["hypotheses"]]

    def parts(self, request: Request) -> list[Part]:
        """Raises InvalidInput also for a hypothesis that leaves no room for a text, and AnswerTooLarge."""
        of_labels = sum(_ENTRY + len(label) for label in request.options["labels"])
        check.refuse_large_answer(sum(len(text) + of_labels for text in request.items), self.fewer)
        try:
            return super().parts(request)
        except InvalidInput:
            request.spent.refuse_stopped()
            self._refuse_long(request.options)
            raise

    def _refuse_long(self, options: Mapping[str, Any]) -> None:
        """Name the hypothesis that is as long as a row."""
        tokenizer = self.tokens.tokenizer
        room = self.tokens.max_length - tokenizer.num_special_tokens_to_add(True)

        def is_long(hypothesis: str) -> bool:
            return bool(len(tokenizer.encode(hypothesis, add_special_tokens=False)) >= room)

        if is_long("".join(options["template"])):
            name = "`hypothesis_template`"
        else:
            long = (label for label in options["labels"] if is_long(label.join(options["template"])))
            if (label := next(long, None)) is None:
                return
            name = f"`candidate_labels[{options['labels'].index(label)}]` in its `hypothesis_template`"
        raise InvalidInput(
            f"{name} leaves no room for a text in the {self.tokens.max_length} tokens that the bundle takes; shorten it"
        )

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """`{"sequence", "labels", "scores"}`, the best first: shares of 1, or with `multi_label` each on its own."""
        logits = np.stack([row["logits"] for row in outputs])
        if options["multi_label"] or len(outputs) == 1:
            scores = softmax(logits[:, [self.config["contradiction"], self.config["entailment"]]])[:, 1]
        else:
            scores = softmax(logits[:, self.config["entailment"]])
        best = scores.argsort()[::-1]
        return {
            "sequence": item,
            "labels": [options["labels"][index] for index in best],
            "scores": [float(scores[index]) for index in best],
        }


TASK = ZeroShotClassification
