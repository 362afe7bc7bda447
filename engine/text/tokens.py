"""From texts to rows of tokens. Rule: the tokenizer's settings are made once, so that threads may share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from engine.errors import BundleError, InvalidInput
from engine.tensors import Array, Row
from engine.text.bulk import FEW, Bulk, Text, are_few
from engine.text.windows import Window, window_of
from engine.text.words import Plain, Words

if TYPE_CHECKING:
    from engine.bundle import Bundle

MOST_OVERLAP = 16
"""Overlapping windows may hold a long input at most so many times over, for each of them takes memory."""
_FREE_TOKENS = 1 << 18
"""Windows of one job with no more tokens than this in all may overlap as they like."""
_AT_ONCE = 32
"""Windows that are cut by one call, at least two."""


class Free:
    """What is left to a job, or to a part of a stream, of tokens in windows that overlap as they like."""

    def __init__(self) -> None:
        self.left = _FREE_TOKENS


class Tokens:
    """A bundle's tokenizer, and what its graph reads.

    `cut` names what is shortened to `max_length` tokens: longest_first, only_first or only_second of a pair; none
    leaves texts whole, for `windows`. Raises BundleError where the bundle has no such graph.
    """

    def __init__(self, bundle: Bundle, *, graph: str = "model", cut: str = "longest_first") -> None:
        self.max_length = int(bundle.manifest.task_config["max_length"])
        self.tokenizer = Tokenizer.from_file(str(bundle.file("tokenizer.json")))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self._sets_segments = self.tokenizer.post_processor is not None
        self._processor: Any = None
        # Of windows the offsets are asked for, and without a post-processor nobody says which text a token is of.
        has_words = cut != "none" and self._sets_segments
        self._words = Words.of(self.tokenizer, self.max_length) if has_words else None
        if cut == "none":
            # `windows` applies it to pieces. Applied to a whole text before, some would trim offsets twice.
            self._processor, self.tokenizer.post_processor = self.tokenizer.post_processor, None
        else:
            self._bulk = Bulk(self.tokenizer, self.max_length, cut)
            self.tokenizer.enable_truncation(self.max_length, strategy=cut)
        graphs = bundle.manifest.graphs
        if graph not in graphs:
            raise BundleError(
                f"the bundle of the task {bundle.manifest.task} has no graph {graph}; let `graph` of its class in "
                f"engine/tasks name one of {', '.join(graphs)}"
            )
        self._graph = graph
        self._inputs = frozenset(spec.name for spec in graphs[graph].inputs)

    def encode(self, texts: Sequence[Text], check: Callable[[], None] = lambda: None) -> list[Plain]:
        """What rows are made of. `check` is called between slices of many texts, and may raise.

        Raises InvalidInput where a pair cannot be cut to fit.
        """
        if self._words is not None and len(texts) <= FEW:
            found = list(takewhile(lambda one: one is not None, map(self._words.encode, texts)))
            if len(found) == len(texts):
                return found  # type: ignore[return-value]
        return self._bulk.encode(texts, check)

    def refuse_cut(self, encoding: Plain | Window, what: str) -> None:
        """Raise InvalidInput when the `encoding` of `what` was cut."""
        if encoding.rest:
            raise InvalidInput(
                f"{what} has more than {self.max_length} tokens, the most that the bundle takes; shorten it or leave "
                "`truncate` at true"
            )

    def read(self, text: str) -> Any:
        """All of a text, with its offsets, for `windows`."""
        if are_few([text]):
            return self.tokenizer.encode(text)
        return self.tokenizer.encode_batch([text])[0]  # without the interpreter lock

    def special(self, is_pair: bool) -> int:
        """Special tokens in each of `windows`."""
        return int(self._processor.num_special_tokens_to_add(is_pair)) if self._processor else 0

    def room(self, before: int | None, length: int | None = None) -> int:
        """Tokens of a text that one of `windows` holds, behind `before` others, or none; it may be less than none."""
        return (length or self.max_length) - self.special(before is not None) - (before or 0)

    def count(
        self,
        tokens: int,
        stride: int,
        *,
        free: Free,
        before: int | None = None,
        length: int | None = None,
        overlap: str = "stride",
    ) -> int:
        """How many of `windows` a text of so many `tokens` makes. Raises InvalidInput as they do."""
        room = self.room(before, length)
        if tokens <= room:
            return 1
        if room <= stride:
            most = length or self.max_length
            raise InvalidInput(
                f"windows of {most} tokens, {most - room} of them taken, must be longer than their overlap of {stride}"
                f"; lower `{overlap}`"
            )
        count = 1 + ceil((tokens - room) / (room - stride))
        if count * room > MOST_OVERLAP * tokens:
            free.left -= count * room
        if free.left < 0:
            raise InvalidInput(
                f"windows of {room} tokens that overlap by {stride} hold the text more than {MOST_OVERLAP} times over; "
                f"lower `{overlap}`"
            )
        return count

    def windows(
        self,
        whole: Any,
        stride: int,
        *,
        free: Free,
        before: Any = None,
        length: int | None = None,
        on_count: Callable[[int], None] | None = None,
        first_only: bool = False,
        overlap: str = "stride",
    ) -> list[Window]:
        """What `read` gave, in windows of at most `length` tokens (`max_length`) that overlap by `stride` tokens.

        With `before`, every window is a pair of it, whole, and a piece of the text. Special tokens are inside.
        `on_count` is told how many there will be, and may raise. Raises InvalidInput when there is no room for a
        window, or where they repeat the text too often and what is `free` to their job is used up; `overlap` is the
        field that `stride` stood in.
        """
        taken = None if before is None else len(before)
        count = self.count(len(whole), stride, free=free, before=taken, length=length, overlap=overlap)
        if on_count is not None:
            on_count(count)
        room = self.room(taken, length)
        rest = max(0, len(whole) - room)
        pieces: Iterable[Any] = [whole]
        if rest:
            pieces = [_cut(whole, room, stride)] if first_only else _pieces(whole, room, stride)
        # One by one: the overflow of a pair that is processed whole has no segments.
        return [self._window(before, piece, rest) for piece in pieces]

    def _window(self, before: Any, piece: Any, rest: int) -> Window:
        """One row of a text or of a pair, special tokens added."""
        process = self._processor.process if self._processor else self.tokenizer.post_process
        encoding = process(piece) if before is None else process(before, piece)
        return window_of(encoding, rest, sets_segments=self._sets_segments)

    def row(self, encoding: Plain | Window, **more: Array) -> Row:
        """What the graph reads of an encoding, and `more` inputs."""
        ids = np.asarray(encoding.ids, np.int32)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), **more}
        if "token_type_ids" in self._inputs:
            feeds["token_type_ids"] = np.asarray(encoding.type_ids, np.int32)
        # A tokenizer without special tokens makes an empty row of an empty text; a bucket is at least one token long.
        return Row(feeds, max(1, len(ids)), self._graph)


def _pieces(whole: Any, room: int, stride: int) -> Iterator[Any]:
    """Of at most `room` tokens, each with `stride` of those of the one before it.

    Cut some at a time: tokenizers holds the interpreter lock while it copies them.
    """
    first = _cut(whole, room + (_AT_ONCE - 1) * (room - stride), stride)
    for some in (first, *first.overflowing):
        some.truncate(room, stride=stride)
        yield from (some, *some.overflowing)


def _cut(whole: Any, length: int, stride: int) -> Any:
    found = Encoding.merge([whole], growing_offsets=False)  # a copy, for others may read it
    found.truncate(length, stride=stride)
    return found


def usage(tokens: int) -> dict[str, int]:
    """`usage` of a reply, as OpenAI has it: the tokens of all rows of the job."""
    return {"prompt_tokens": tokens, "total_tokens": tokens}
