"""Labels and scores of a text, or of a pair of texts.

`task_config` of the manifest: labels (names, in the order of the logits), function (softmax, sigmoid or none: the
default of `function_to_apply`), max_length (tokens), pairs (false where the model has no segment for a second text; by
default true).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.errors import InvalidInput
from engine.tasks import payload as check
from engine.tasks.items import Part, Request
from engine.text.scores import OPTIONS, best_labels, refuse_many, score_options
from engine.text.task import TextTask

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays


class TextClassification(TextTask):
    """`{"text": ...}`, with `text_pair` for a pair; in a list, an item may be `{"text": ..., "text_pair": ...}`."""

    summary: ClassVar[str] = "Labels and scores of a text or a pair: sentiment, topic, several labels, or a regression."
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "A quick test."},
        {"texts": ["The best film of the year.", "Ein Satz auf Deutsch, etwas länger."], "top_k": None},
        {"text": "The cat sits on the mat.", "text_pair": "An animal is indoors.", "function_to_apply": "sigmoid"},
    )
    option_names: ClassVar[tuple[str, ...]] = ("text_pair", *OPTIONS, "truncate")

    def item(self, value: Any, name: str, payload: dict[str, Any]) -> Any:
        """A text, or a pair as a tuple."""
        pair, of = payload.get("text_pair"), ""
        if pair is not None and name not in ("text", "inputs"):
            raise InvalidInput("`text_pair` goes with `text`; in a list, write {`text`, `text_pair`} for every item")
        if isinstance(value, dict):
            if pair is not None:
                raise InvalidInput("`text_pair` stands twice: beside an object and, maybe, in it; write it in there")
            check.refuse_unknown(value, ("text", "text_pair"))
            value, pair, of = value.get("text"), value.get("text_pair"), f"{name}."
        text = super().item(value, f"{of}text" if of else name, payload)
        if pair in (None, ""):  # an empty second text is none, as the pipelines have it
            return text
        second = super().item(pair, f"{of}text_pair", payload)
        if not self.config.get("pairs", True):
            raise InvalidInput(
                f"`{of}text_pair` is nothing that this model can read: it was trained on single texts, and knows no "
                "segment but the first; leave it out"
            )
        return text, second

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`top_k`: the best label unless it says otherwise; null gives all."""
        scores = score_options(payload, self.config["labels"], function=self.config["function"], top_k=1)
        return {**super().options(payload), **scores}

    def parts(self, request: Request) -> list[Part]:
        """A row an item. Raises AnswerTooLarge before there is one."""
        refuse_many(len(request.items), self.config["labels"], request.options["top_k"], self.fewer)
        return super().parts(request)

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """`[{"label": ..., "score": ...}, ...]`, the best first."""
        return best_labels(outputs[0]["logits"], self.config["labels"], options)


TASK = TextClassification
