"""From start and end logits to answers, as transformers' pipeline does it. Rule: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from engine.tensors import Array
from engine.text.scores import softmax
from engine.text.windows import Window

_SLICE = 1 << 16
"""Spans that are looked through at a time; those of a long window may be as many as its tokens squared."""
_LONG = 256
"""Characters of a text that is compared with others; longer ones would take seconds, and hardly stand there twice."""
_IMPOSSIBLE = -10_000.0  # a logit that leaves no probability; the pipelines' value

_Spans: TypeAlias = tuple[Array, Array, Array]
"""Where each begins and ends, in tokens or in characters, and its probability."""


@dataclass(frozen=True)
class Read:
    """A window of the context behind the question, with a logit a token for where an answer begins and ends."""

    window: Window
    start: Array
    end: Array


def answers_of(
    context: str,
    reads: Sequence[Read],
    *,
    cls_token_id: int | None,
    top_k: int,
    max_tokens: int,
    impossible: bool,
    align: bool,
) -> list[dict[str, Any]]:
    """The `top_k` best answers of at most `max_tokens` tokens; fewer where the context has no more of any probability.

    Spans of equal text count as one answer. `align` widens them to whole words. With `impossible`, having no answer is
    an answer as well: the empty text, with the least probability that any window gives to it.
    """
    found: list[_Spans] = []
    no_answer = 1.0
    for read in reads:
        if not len(read.window.ids):  # two texts of nothing, by a tokenizer without special tokens
            continue
        start, end, none = _probabilities(read, cls_token_id)
        no_answer = min(no_answer, none)
        if not (read.window.texts == 1).any():  # without [CLS] all the probability is that of the question's tokens
            continue
        of_words = read.window.offsets_of_words() if align else None
        first, last, scores = _best_spans(start, end, candidates_of(top_k, align=align), max_tokens)
        found.append((*_characters(read.window, of_words, first, last), scores))
    answers = _best_texts(context, found, top_k) if found else []
    if impossible:
        answers.append({"score": no_answer, "start": 0, "end": 0, "answer": ""})
    return sorted(answers, key=lambda answer: answer["score"], reverse=True)[:top_k]


def candidates_of(top_k: int, *, align: bool) -> int:
    """Spans of each window that are compared with those of the others; some fall together when they are widened."""
    return top_k * 2 + 10 if align else top_k


def _probabilities(read: Read, cls_token_id: int | None) -> tuple[Array, Array, float]:
    """Of every token to be first and last, over context and [CLS]; and of there being no answer: [CLS]'s.

    One that is spelled in the question, which the pipeline takes for it, is no place in the context.
    """
    window = read.window
    allowed = window.texts == 1
    if cls_token_id is not None:
        allowed |= (window.ids == cls_token_id) & (window.texts < 0)
    start, end = (softmax(np.where(allowed, logits, _IMPOSSIBLE)) for logits in (read.start, read.end))
    none = float(start[0] * end[0])
    start[0] = end[0] = 0.0
    return start, end, none


def _best_spans(start: Array, end: Array, count: int, max_tokens: int) -> _Spans:
    """The `count` most probable spans of at most `max_tokens` tokens: first, last and probability, which is over 0.

    Only the band of the matrix of all pairs is computed that such spans lie in, some of its rows at a time.
    """
    width = min(max_tokens, len(end))
    ends = np.lib.stride_tricks.sliding_window_view(np.concatenate([end, np.zeros(width - 1, end.dtype)]), width)
    step = max(1, _SLICE // width)
    places, values = np.empty(0, np.int64), np.empty(0, start.dtype)
    for row in range(0, len(start), step):
        band = (start[row : row + step, None] * ends[row : row + step]).ravel()
        # Of the others few are larger than the least of so many.
        some = np.flatnonzero(band > values.min()) if len(values) == count else _largest(band, count)
        places, values = np.concatenate([places, some + row * width]), np.concatenate([values, band[some]])
        best = _largest(values, count)
        places, values = places[best], values[best]
    order = np.argsort(-values, kind="stable")[: np.count_nonzero(values)]
    first = places[order] // width
    return first, first + places[order] % width, values[order]


def _largest(values: Array, count: int) -> Array:
    """Places of the `count` largest, in no order."""
    return np.argpartition(-values, count)[:count] if count < len(values) else np.arange(len(values))


def _characters(window: Window, of_words: Array | None, first: Array, last: Array) -> tuple[Array, Array]:
    """Where the tokens `first` to `last` stand in the context, or the words that they belong to."""
    begin, stop = window.offsets[first, 0], window.offsets[last, 1]
    if of_words is None:
        return begin, stop
    has_words = (window.words[first] >= 0) & (window.words[last] >= 0)
    return np.where(has_words, of_words[first, 0], begin), np.where(has_words, of_words[last, 1], stop)


def _best_texts(context: str, found: Sequence[_Spans], count: int) -> list[dict[str, Any]]:
    """The `count` texts of the most probability, those of equal spans added up, each where it was found first.

    Python's objects are made of these alone: the spans of many windows would be gigabytes.
    """
    begins, stops, scores = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    _, firsts, texts = np.unique(_keys(context, begins, stops), return_index=True, return_inverse=True)
    totals = np.bincount(texts, scores)
    order = np.lexsort((firsts, -totals))[:count]
    places = zip(totals[order].tolist(), begins[firsts[order]].tolist(), stops[firsts[order]].tolist(), strict=True)
    return [
        {"score": score, "start": begin, "end": stop, "answer": context[begin:stop]} for score, begin, stop in places
    ]


def _keys(context: str, begins: Array, stops: Array) -> Array:
    """A number for the text of every span, in lower case; for that of a long one's place."""
    places = zip(begins.tolist(), stops.tolist(), strict=True)
    texts = (context[begin:stop].lower() if stop - begin <= _LONG else (begin, stop) for begin, stop in places)
    return np.fromiter(map(hash, texts), np.int64, len(begins))
