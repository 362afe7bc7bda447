"""Texts that are encoded together, in slices and in halves of pairs, are what the tokenizer makes of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from engine.errors import InvalidInput
from engine.text import bulk
from engine.text.bulk import Bulk
from tests.tokenizer_kinds import ANY, LENGTH, TOKENIZERS, bert, byte_level, sentencepiece

CUTS = ["longest_first", "only_first", "only_second"]
CLS, SEP = ("[CLS]", 2), ("[SEP]", 3)


def with_processor(tokenizer: Tokenizer, processor: Any) -> Tokenizer:
    tokenizer.post_processor = processor
    return tokenizer


def turned() -> Any:
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $B [SEP] $A:1 [SEP]:1", special_tokens=[CLS, SEP]
    )


KINDS = {
    "wordpiece": bert(),
    "wordpiece of another post-processor": with_processor(bert(), processors.BertProcessing(SEP, CLS)),
    "wordpiece without a post-processor": with_processor(bert(), None),
    "pairs turned round": with_processor(bert(), turned()),
    "roberta": byte_level(),
    "gpt2": byte_level(prefix=False, roberta=False),
    "xlm-r": sentencepiece(drops_space=True),
    "bge-m3": sentencepiece(drops_space=False),
    "added": TOKENIZERS["added"],
}
LONG = st.builds(lambda text, times: f"{text} " * times, ANY, st.integers(2, 60))
SOME = st.sampled_from(["", "a", "fox " * 60, "b " * 13, "the dogs " * 11])
TEXT = ANY | SOME | LONG
TEXTS = st.lists(TEXT | st.tuples(TEXT, TEXT), max_size=7)


def copied(tokenizer: Tokenizer) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    return copy


def made(kind: str, length: int, cut: str) -> tuple[Bulk, Tokenizer]:
    tokenizer = copied(KINDS[kind])
    own = Bulk(tokenizer, length, cut)
    tokenizer.enable_truncation(length, strategy=cut)
    return own, tokenizer


def expected_of(tokenizer: Tokenizer, text: Any) -> tuple[list[int], list[int], bool]:
    """Of text and pairs alone; their type ids are in any case those of `encode`."""
    encoding = tokenizer.encode(*((text,) if isinstance(text, str) else text))
    return encoding.ids, encoding.type_ids, bool(encoding.overflowing)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS, length=st.integers(5, LENGTH), short=st.sampled_from([0, 8_000]), chars=st.integers(1, 200))
@settings(max_examples=60)
def test_whatever_the_texts_are_each_is_as_alone(kind: str, cut: str, texts: Any, length: int, short: int, chars: int):
    own, tokenizer = made(kind, length, cut)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "_SHORT", short)  # nothing is short, or all
        patch.setattr(bulk, "_SLICE_CHARS", chars)
        try:
            found = own.encode(texts, lambda: None)
        except InvalidInput:
            with pytest.raises(Exception, match=r"too short to respect|Second sequence not provided"):
                [expected_of(tokenizer, text) for text in texts]
            return
    assert [(list(one.ids), list(one.type_ids), one.rest > 0) for one in found] == [
        expected_of(tokenizer, text) for text in texts
    ]


@pytest.mark.parametrize("cut", ["longest_first", "only_first"])
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"pairs turned round"}))
@given(first=st.integers(0, 40), second=st.integers(0, 40), length=st.integers(5, LENGTH))
@settings(max_examples=150)
def test_pairs_of_any_two_lengths_are_cut_as_the_tokenizer_cuts(
    kind: str, cut: str, first: int, second: int, length: int
):
    own, tokenizer = made(kind, length, cut)
    pair = "a " * first, "b " * second
    try:
        (found,) = own.encode([pair], lambda: None)
    except InvalidInput:
        with pytest.raises(Exception, match="too short to respect"):
            tokenizer.encode(*pair)
        return
    assert (list(found.ids), list(found.type_ids), found.rest > 0) == expected_of(tokenizer, pair)


def test_a_pair_that_cannot_be_cut_is_refused():
    for kind in ("wordpiece", "pairs turned round"):
        own, _ = made(kind, 8, "only_first")
        with pytest.raises(InvalidInput, match="the text that is not shortened leaves no room for the other in 8 tok"):
            own.encode([("fox", "a"), ("fox", "a " * 5)], lambda: None)


class Counted:
    """A tokenizer that says what it was asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.batches: list[list[Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_batch_fast(self, texts: list[Any], **options: Any) -> Any:
        self.batches.append(texts)
        return self._tokenizer.encode_batch_fast(texts, **options)


def counted(kind: str = "wordpiece", cut: str = "longest_first") -> tuple[Bulk, Counted]:
    tokenizer = Counted(copied(KINDS[kind]))
    own = Bulk(tokenizer, LENGTH, cut)
    tokenizer.enable_truncation(LENGTH, strategy=cut)
    return own, tokenizer


@pytest.mark.parametrize("cut", ["longest_first", "only_first"])
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"pairs turned round"}))
def test_a_text_that_all_pairs_share_is_encoded_once(kind: str, cut: str):
    own, tokenizer = counted(kind, cut)
    long = "the quick brown fox " * 2_000
    found = own.encode([(long, f"a {index}") for index in range(300)], lambda: None)
    assert len(found) == 300
    asked = [text for batch in tokenizer.batches for text in batch]
    assert asked.count(long) == 1
    assert all(isinstance(text, str) for text in asked)


def test_what_was_cut_off_is_not_kept():
    own, _ = counted()
    found = own.encode(["fox " * 20_000, *[("fox " * 20_000, f"dog {index}") for index in range(20)]], lambda: None)
    for one in found:
        assert isinstance(one.ids, np.ndarray)
        assert one.ids.base is None
        assert len(one.ids) == len(one.type_ids) == LENGTH
        assert one.rest > 19_000


def test_others_get_their_turn_between_slices_and_so_does_a_cancellation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bulk, "_SLICE_CHARS", 20_000)
    own, tokenizer = counted()
    texts = [f"{index} {'fox ' * 50}" for index in range(1_000)]
    turns: list[int] = []
    own.encode(texts, lambda: turns.append(len(tokenizer.batches)))
    assert max(map(len, tokenizer.batches)) <= bulk._SLICE
    assert max(sum(map(len, batch)) for batch in tokenizer.batches) <= bulk._SLICE_CHARS
    assert turns == list(range(len(tokenizer.batches)))
    tokenizer.batches.clear()

    def stop_after_two() -> None:
        if len(tokenizer.batches) == 2:
            raise InvalidInput("the job was stopped")

    with pytest.raises(InvalidInput, match="the job was stopped"):
        own.encode(texts, stop_after_two)
    assert len(tokenizer.batches) == 2


def test_a_slice_is_at_least_one_text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bulk, "_SLICE_CHARS", 100_000)
    own, tokenizer = counted()
    own.encode(["fox " * 30_000, "a", "fox " * 26_000], lambda: None)
    assert [len(batch) for batch in tokenizer.batches] == [1, 1]  # the short one between them is encoded on the spot


@pytest.mark.parametrize("texts", [["fox"] * 8, [("fox " * 900, str(index)) for index in range(8)]])
def test_few_short_texts_wait_for_no_turn(texts: Any):
    own, tokenizer = counted()
    assert bulk.are_few(texts)
    own.encode(texts, lambda: None)
    assert tokenizer.batches == []
    assert not bulk.are_few([*texts, "a"])
    assert not bulk.are_few(["fox" * 3_000])
