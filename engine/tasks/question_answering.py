"""Answers that stand in a context, word for word; a long context is read in windows.

`task_config` of the manifest: cls_token_id (or null), max_length (tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from engine.errors import InvalidInput
from engine.tasks import payload as check
from engine.tasks.items import Part, Request
from engine.text.bulk import are_few
from engine.text.spans import Read, answers_of, candidates_of
from engine.text.task import TextTask
from engine.text.tokens import Free
from engine.text.windows import are_few_windows

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays

WINDOW = 384
"""Tokens of a window unless `max_seq_len` says otherwise; the pipelines' default, and that of most models' training."""

_OVERLAP, _OVERLAP_FIELD = 128, "doc_stride"
_ENTRY = 60
"""Bytes of an answer's JSON beside its text, about."""
_ANSWER_TOKENS = 15
_MOST_SPANS = 1 << 18
"""Of one context, from all its windows: each is a text that is compared with the others."""
_PAIRS = 1 << 12
"""Of tokens, that take about as long to look through as an answer takes to be put together."""


class QuestionAnswering(TextTask):
    """`{"question": ..., "context": ...}`, either a list for several, or `inputs` with objects of both."""

    summary: ClassVar[str] = "Answers to questions, found word for word in a context of any length."
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    cut: ClassVar[str] = "none"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"question": "Where do I live?", "context": "My name is Sarah and I live in London."},
        {"question": ["Who?", "Where?"], "context": "Wolfgang works for Acme in Berlin.", "top_k": 3},
    )
    option_names: ClassVar[tuple[str, ...]] = (
        "top_k", "max_answer_len", "max_seq_len", "doc_stride", "handle_impossible_answer", "align_to_words",
    )  # fmt: skip

    def parse(self, payload: Json) -> Request:
        """Check the job's input. Raises InvalidInput."""
        payload = check.without_nulls(check.require_object(payload), ("inputs", "question", "context"))
        check.refuse_unknown(payload, ("question", "context", "inputs", *self.option_names), check.OF_EVERY_JOB)
        pairs, single = _pairs(payload)
        if not 1 <= len(pairs) <= self.limits.max_items:
            raise InvalidInput(f"a job takes 1 to {self.limits.max_items} questions, got {len(pairs)}")
        items = [(self._text(pair.question, pair.names[0]), self._text(pair.context, pair.names[1])) for pair in pairs]
        return Request(items, single, {**self.options(payload), "names": [pair.names[0] for pair in pairs]})

    def _text(self, value: Any, name: str) -> str:
        text = check.string(value, name, self.limits.max_chars)
        if not text:
            raise InvalidInput(f"`{name}` must not be empty")
        return text

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """The pipelines' options and defaults."""
        longest = self.tokens.max_length
        length = check.whole_number(payload, "max_seq_len", 8, longest) or min(longest, WINDOW)
        stride = check.whole_number(payload, "doc_stride", 0, length - 1)
        return {
            "length": length,
            "stride": min(length // 2, _OVERLAP) if stride is None else stride,
            "top_k": check.whole_number(payload, "top_k", 1, 1000) or 1,
            "max_answer_len": min(check.whole_number(payload, "max_answer_len", 1) or _ANSWER_TOKENS, longest),
            "impossible": check.boolean(payload, "handle_impossible_answer", False),
            "align": check.boolean(payload, "align_to_words", True),
        }

    def is_quick(self, request: Request) -> bool:
        """Whether it makes few windows, of short texts."""
        if not are_few(request.items):
            return False
        longest = max(len(question.encode()) for question, _ in request.items)  # hardly a token is less than a byte
        step = request.options["length"] - request.options["stride"] - self.tokens.special(is_pair=True) - longest
        return are_few_windows([context for _, context in request.items], step)

    def answers_in(self, request: Request, rows: int) -> int:
        """Of each window, so many are put together, out of all pairs of a first and a last token."""
        options = request.options
        pairs = rows * options["length"] * min(options["length"], options["max_answer_len"])
        return int(rows * options["top_k"] + pairs // _PAIRS)

    def parts(self, request: Request) -> list[Part]:
        """A row a window of the context, each behind the whole question."""
        options = request.options
        length, stride = options["length"], options["stride"]
        spans = candidates_of(options["top_k"], align=options["align"])
        spans = min(spans, length * min(length, options["max_answer_len"]))
        parts: list[Part] = []
        count = 0

        def on_count(more: int) -> None:
            self.refuse_rows(count + more)
            if more * spans > _MOST_SPANS:
                raise InvalidInput(
                    f"`top_k` {options['top_k']} of {more} windows of one context is too much to compare; lower "
                    f"`top_k` or `{_OVERLAP_FIELD}`"
                )

        read = lru_cache(2)(self.tokens.read)  # one question, or one context, is often that of all the others
        self._refuse_many(request, read)
        free = Free()
        for index, (question, context) in enumerate(request.items):
            request.spent.refuse_stopped()
            before, whole = read(question), read(context)
            self._refuse_long(request, index, len(before), len(whole))
            windows = self.tokens.windows(
                whole, stride, free=free, before=before, length=length, on_count=on_count, overlap=_OVERLAP_FIELD
            )
            count += len(windows)
            parts.append(Part([self.tokens.row(window) for window in windows], windows))
        return parts

    def _refuse_many(self, request: Request, read: Callable[[str], Any]) -> None:
        """Before one is made: each of them is a question and a piece of a context."""
        length, stride = request.options["length"], request.options["stride"]
        free = Free()

        def count(index: int) -> int:
            before, whole = (len(read(text)) for text in request.items[index])
            self._refuse_long(request, index, before, whole)
            return self.tokens.count(whole, stride, free=free, before=before, length=length, overlap=_OVERLAP_FIELD)

        most = 0
        for question, context in request.items:  # hardly a token is less than a byte
            step = max(1, self.tokens.room(len(question.encode()), length) - stride)
            most += 1 + len(context.encode()) // step
        self.refuse_windows(request, most, map(count, range(len(request.items))))

    def _refuse_long(self, request: Request, index: int, question: int, context: int) -> None:
        """Raise InvalidInput for a question of so many tokens that leaves no window room for a context of so many."""
        length, stride = request.options["length"], request.options["stride"]
        room = self.tokens.room(question, length)
        if context <= room or room > stride:
            return
        ways = ["shorten it"]
        if room > 0:
            ways.append(f"lower `{_OVERLAP_FIELD}`")
        if length < self.tokens.max_length:
            ways.append("raise `max_seq_len`")
        name = request.options["names"][request.first + index]
        raise InvalidInput(
            f"`{name}` has {question} tokens, which leaves {max(0, room)} of a window's {length} for the context, "
            f"and windows overlap by {stride}; {', or '.join(ways)}"
        )

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """`{"score", "start", "end", "answer"}`, or a list of them where there are several, the best first."""
        _, context = item
        reads = [
            Read(window, row["start_logits"][: len(window.ids)], row["end_logits"][: len(window.ids)])
            for window, row in zip(part.data, outputs, strict=True)
        ]
        found = answers_of(
            context,
            reads,
            cls_token_id=self.config["cls_token_id"],
            top_k=options["top_k"],
            max_tokens=options["max_answer_len"],
            impossible=options["impossible"],
            align=options["align"],
        )
        return found[0] if len(found) == 1 else found

    def least_bytes(self, answer: Json) -> int:
        """About; answers may hold one another."""
        found = answer if isinstance(answer, list) else [answer]
        return sum(_ENTRY + len(one["answer"].encode()) for one in found)


class _Pair(NamedTuple):
    """As it was sent, with the fields that its texts stood in."""

    question: Any
    context: Any
    names: tuple[str, str] = ("question", "context")


def _pairs(payload: dict[str, Any]) -> tuple[list[_Pair], bool]:
    """Questions and contexts, and whether there is one of both alone."""
    if "inputs" in payload:
        if "question" in payload or "context" in payload:
            raise InvalidInput("give `inputs`, or `question` and `context`, not both")
        inputs = payload["inputs"]
        if not isinstance(inputs, list):
            return [_pair(inputs, "inputs")], True
        return [_pair(one, f"inputs[{index}]") for index, one in enumerate(inputs)], False
    if "question" not in payload or "context" not in payload:
        raise InvalidInput("`input` needs `question` and `context`, or `inputs` with objects of both")
    questions, contexts = payload["question"], payload["context"]
    of_questions, of_contexts = isinstance(questions, list), isinstance(contexts, list)
    if not of_questions:
        questions = [questions] * (len(contexts) if of_contexts else 1)
    if not of_contexts:
        contexts = [contexts] * len(questions)
    if len(questions) != len(contexts):
        raise InvalidInput(f"`question` holds {len(questions)} and `context` {len(contexts)}; they must go together")
    pairs = []
    for index, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        at = f"[{index}]"
        names = (f"question{at if of_questions else ''}", f"context{at if of_contexts else ''}")
        pairs.append(_Pair(question, context, names))
    return pairs, not of_questions and not of_contexts


def _pair(value: Any, name: str) -> _Pair:
    check.refuse_unknown(check.require_object(value, f"`{name}`"), ("question", "context"), f" (in `{name}`)")
    return _Pair(value.get("question"), value.get("context"), (f"{name}.question", f"{name}.context"))


TASK = QuestionAnswering
