"""Answers of question-answering, from logits of windows made by hand."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text import spans
from engine.text.spans import Read, answers_of
from engine.text.windows import Window

CLS = 1
CONTEXT = "".join(chr(0x4E00 + index) for index in range(4096))
"""No two characters are equal, so that no two spans are."""


def window(question: int, context: int, *, cls: bool = True) -> Window:
    """[CLS], a question, and a context with a character a token."""
    texts = np.array([-1] * cls + [0] * question + [1] * context, np.int8)
    ids = np.where(texts < 0, CLS, 5).astype(np.int32)
    places = np.maximum(np.arange(len(texts)) - cls - question, 0)
    offsets = np.stack([places, places + 1], axis=1).astype(np.int32)
    return Window(ids, texts.astype(np.int32), offsets, np.arange(len(texts), dtype=np.int32), texts, texts < 0, 0)


def ask(*reads: Read, **options: Any) -> list[dict[str, Any]]:
    known = {"cls_token_id": CLS, "top_k": 1, "max_tokens": 15, "impossible": False, "align": False}
    return answers_of(CONTEXT, reads, **{**known, **options})


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 50), st.integers(1, 70), st.integers(0, 9))
@settings(deadline=None)
def test_the_best_spans_are_those_of_all_pairs(context: int, longest: int, top_k: int, cells: int, seed: int):
    """However many are looked through at a time."""
    draw = np.random.default_rng(seed)
    logits = draw.standard_normal((2, context + 4)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "_SLICE", cells)
        found = ask(Read(window(3, context), *logits), top_k=top_k, max_tokens=longest)
    start, end = (np.exp(one) / (np.exp(one[0]) + np.exp(one[4:]).sum()) for one in logits.astype(np.float64))
    pairs = [(first, last) for first in range(context) for last in range(first, min(context, first + longest))]
    scores = {(first, last + 1): start[first + 4] * end[last + 4] for first, last in pairs}
    spans_found = [(answer["start"], answer["end"]) for answer in found]
    assert len(set(spans_found)) == len(found) == min(top_k, len(pairs))
    assert [answer["score"] for answer in found] == pytest.approx(sorted(scores.values(), reverse=True)[:top_k], 1e-5)
    assert [answer["score"] for answer in found] == pytest.approx([scores[one] for one in spans_found], 1e-5)


def test_the_widest_answers_of_a_long_window_take_little_memory():
    """All pairs of its tokens are 64 MiB."""
    read = Read(window(8, 4000), *np.random.default_rng(0).standard_normal((2, 4009)).astype(np.float32))
    tracemalloc.start()
    try:
        assert len(ask(read, top_k=5, max_tokens=4000)) == 5
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cls", [True, False], ids=["with [CLS]", "without"])
def test_a_window_without_a_token_of_the_context_has_no_answer(cls: bool):
    read = Read(window(4, 0, cls=cls), *np.zeros((2, 4 + cls), np.float32))
    assert ask(read, top_k=3) == []
    none = 1.0 if cls else 1 / 16
    assert ask(read, top_k=3, impossible=True) == [{"score": none, "start": 0, "end": 0, "answer": ""}]
    other = Read(window(4, 2, cls=cls), *np.zeros((2, 6 + cls), np.float32))
    assert ask(read, other, top_k=9) == ask(other, top_k=9)
