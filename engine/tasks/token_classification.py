"""Entities in texts, token by token or gathered into words and groups, with their place in characters.

`task_config` of the manifest: labels (names, in the order of the logits), unk_token_id (or null), max_length (tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.errors import InvalidInput
from engine.tasks import payload as check
from engine.tasks.items import Part, Request
from engine.text.bulk import are_few
from engine.text.entities import STRATEGIES, Aggregation, Token, merge_windows
from engine.text.scores import softmax
from engine.text.task import TextTask
from engine.text.tokens import Free
from engine.text.windows import are_few_windows

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays

_ENTRY = len('{"entity_group":"","score":0.0,"word":"","start":0,"end":1},')  # the shorter form
_TOKENS_OF_AN_ANSWER = 16  # so an event loop puts together 271 at most (handler.py), which takes it some 10 ms


class TokenClassification(TextTask):
    """`{"text": ...}` or `{"texts": [...]}`; with `stride`, a long text is read in windows that overlap by so much."""

    summary: ClassVar[str] = "Entities (names, places, parts of speech) with scores and places in the text."
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    cut: ClassVar[str] = "none"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "My name is Sarah and I live in London."},
        {"texts": ["Wolfgang works for Acme in Berlin.", "Nobody here."], "aggregation_strategy": "simple"},
        {"text": "A long text about Paris. " * 40, "aggregation_strategy": "first", "stride": 8},
    )
    option_names: ClassVar[tuple[str, ...]] = ("aggregation_strategy", "ignore_labels", "stride", "truncate")
    fewer: ClassVar[str] = "name more labels in `ignore_labels`, or send less at once"

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`aggregation_strategy` (none), `ignore_labels` (O) and `stride` (absent: the text is cut)."""
        strategy = check.choice(payload, "aggregation_strategy", STRATEGIES)
        stride = check.whole_number(payload, "stride", 0, self.tokens.max_length - 1)
        if stride is not None and strategy == "none":
            raise InvalidInput("`stride` needs an `aggregation_strategy` other than none, to join what windows share")
        ignored = check.given(payload, "ignore_labels", ["O"])
        if not isinstance(ignored, list):
            raise InvalidInput(f"`ignore_labels` must be a list of strings, got {check.kind(ignored)}")
        for index, label in enumerate(ignored):
            if not isinstance(label, str):
                raise InvalidInput(f"`ignore_labels[{index}]` must be a string, got {check.kind(label)}")
        return {**super().options(payload), "strategy": strategy, "stride": stride, "ignored": frozenset(ignored)}

    def is_quick(self, request: Request) -> bool:
        """Whether it makes few windows, of short texts."""
        stride = request.options["stride"]
        return are_few(request.items) and (
            stride is None or are_few_windows(request.items, self.tokens.max_length - stride)
        )

    def parts(self, request: Request) -> list[Part]:
        """A row a window; the first alone without `stride`."""
        stride = request.options["stride"]
        parts: list[Part] = []
        count = 0

        def on_count(more: int) -> None:
            self.refuse_rows(count + (more if stride is not None else 1))

        if stride is not None:
            # Hardly a token is less than a byte.
            step = max(1, self.tokens.room(None) - stride)
            most = sum(1 + len(text.encode()) // step for text in request.items)
            free = Free()
            counts = (self.tokens.count(len(self.tokens.read(text)), stride, free=free) for text in request.items)
            self.refuse_windows(request, most, counts)
        free = Free()
        for index, text in enumerate(request.items):
            request.spent.refuse_stopped()
            whole = self.tokens.read(text)
            windows = self.tokens.windows(whole, stride or 0, free=free, on_count=on_count, first_only=stride is None)
            if stride is None and not request.options["truncate"]:
                self.tokens.refuse_cut(windows[0], self.name_of(request, index, 0))
            count += len(windows)
            parts.append(Part([self.tokens.row(window) for window in windows], windows))
        return parts

    def answers_in(self, request: Request, rows: int) -> int:
        """Of each token, one is put together."""
        return max(rows, sum(row.length for part in request.parts for row in part.rows) // _TOKENS_OF_AN_ANSWER)

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """A list of entities, in the order of the text."""
        aggregation = Aggregation(self.tokens.tokenizer, self.config["labels"], options["strategy"])
        entities = []
        for window, output in zip(part.data, outputs, strict=True):
            scores = softmax(output["logits"][: len(window.ids)])
            found = aggregation.entities(self._tokens_of(item, window, scores))
            name = "entity" if options["strategy"] == "none" else "entity_group"
            entities += [entity for entity in found if entity[name] not in options["ignored"]]
        return merge_windows(entities) if len(outputs) > 1 else entities

    def least_bytes(self, answer: Json) -> int:
        """A token may be a character, and its entity a hundred."""
        return _ENTRY * len(answer)

    def _tokens_of(self, text: str, window: Any, scores: Any) -> list[Token]:
        """The tokens of a window that are not special, each with what the pipelines know about it."""
        tokenizer, unknown = self.tokens.tokenizer, self.config["unk_token_id"]
        prefix = getattr(tokenizer.model, "continuing_subword_prefix", None)
        tokens = []
        for index, (token_id, offsets, special) in enumerate(
            zip(window.ids.tolist(), window.offsets.tolist(), window.is_special.tolist(), strict=True)
        ):
            if special:
                continue
            start, end = offsets
            word, written = tokenizer.id_to_token(token_id), text[start:end]
            # Without a mark on continuing pieces there is no better sign than the absence of a space.
            joined = start > 0 and " " not in text[start - 1 : start + 1]
            is_subword = len(word) != len(written) if prefix else joined
            if token_id == unknown:
                word, is_subword = written, False
            tokens.append(Token(word, scores[index], start, end, index, is_subword))
        return tokens


TASK = TokenClassification
