"""Answers of question-answering, from logits of windows made by hand."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text import spans
from engine.text.spans import Read, _probabilities, answers_of
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


def ask(*reads: Read, context: str = CONTEXT, **options: Any) -> list[dict[str, Any]]:
    known = {"cls_token_id": CLS, "top_k": 1, "max_tokens": 15, "impossible": False, "align": False}
    return answers_of(context, reads, **{**known, **options})


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 50), st.integers(1, 70), st.integers(0, 9))
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


def of_texts(context: str, reads: Sequence[Read], count: int, longest: int) -> dict[str, list[Any]]:
    """What the best spans of each window come to, text by text: where it was found first, and the sum."""
    found: dict[str, list[Any]] = {}
    for read in reads:
        start, end, _ = _probabilities(read, CLS)
        pairs = [(first, last) for first in range(len(start)) for last in range(first, min(len(end), first + longest))]
        for first, last in sorted(pairs, key=lambda pair: -start[pair[0]] * end[pair[1]])[:count]:
            if start[first] * end[last] > 0:
                begin, stop = read.window.offsets[first, 0], read.window.offsets[last, 1]
                entry = found.setdefault(context[begin:stop].lower(), [begin, stop, 0.0])
                entry[2] += float(start[first] * end[last])
    return found


@given(
    st.lists(st.sampled_from(["a", "A", "b", "İ", "i", "Σ", "σ", "\0", "语"]), min_size=1, max_size=30).map("".join),
    st.lists(st.tuples(st.integers(0, 29), st.integers(1, 12), st.integers(0, 9)), min_size=1, max_size=6),
    st.integers(1, 60),
    st.integers(1, 12),
    st.booleans(),
)
def test_equal_texts_of_all_windows_are_one_answer(
    context: str, cuts: list[tuple[int, int, int]], top_k: int, longest: int, placeless: bool
):
    """The same as with a sum for each text, which takes gigabytes."""
    reads = []
    for at, length, seed in cuts:
        begin = at % len(context)
        made = window(2, min(length, len(context) - begin))
        made.offsets[made.texts == 1] += begin
        if placeless:
            made.offsets[-1] = 0  # a token that the normaliser made of nothing
        logits = 3 * np.random.default_rng(seed).standard_normal((2, len(made.ids))).astype(np.float32)
        reads.append(Read(made, *logits))
    answers = ask(*reads, context=context, top_k=top_k, max_tokens=longest)
    expected = of_texts(context, reads, top_k, longest)
    assert [one["score"] for one in answers] == pytest.approx(
        sorted((total for _, _, total in expected.values()), reverse=True)[:top_k], rel=1e-6
    )
    for one in answers:
        begin, stop, total = expected.pop(one["answer"].lower())  # no text twice
        assert (one["start"], one["end"], context[begin:stop]) == (begin, stop, one["answer"])
        assert one["score"] == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("others", [0, 100])
def test_letters_are_compared_as_the_pipeline_does(others: int):
    """One answer's text in lower case with another's, however many there are: İ becomes two, Σ what its text says."""
    context = "İiaΣ σ" + CONTEXT[:others]
    read = Read(window(2, len(context)), *np.zeros((2, len(context) + 3), np.float32))
    texts = [one["answer"] for one in ask(read, context=context, top_k=1000, max_tokens=1)]
    assert set(texts) == set(context) - {"σ"}
    assert len(texts) == 5 + others


def test_long_texts_are_compared_by_their_places(monkeypatch: pytest.MonkeyPatch):
    """A long window has thousands that are as long as itself, nearly."""
    monkeypatch.setattr(spans, "_LONG", 4)
    read = Read(window(2, 10), *np.zeros((2, 13), np.float32))
    found = ask(read, read, context="a" * 10, top_k=100, max_tokens=6)
    assert sorted(len(one["answer"]) for one in found) == [1, 2, 3, 4] + [5] * 6 + [6] * 5


def test_the_answers_of_many_windows_take_little_memory():
    """All their spans as texts are a hundred MB."""
    reads = []
    for seed in range(50):
        made = window(8, 256)
        made.offsets[made.texts == 1] += 64 * seed
        reads.append(Read(made, *np.random.default_rng(seed).standard_normal((2, 265)).astype(np.float32)))
    tracemalloc.start()
    try:
        assert len(ask(*reads, top_k=1000, max_tokens=256, align=True)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


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
