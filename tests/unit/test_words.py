"""Texts put together from their words are what the tokenizer makes of them, or the tokenizer is asked."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from engine.text import cuts, words
from engine.text.words import Words

LENGTH = 24
CORPUS = (
    "It's the quick brown fox, isn't it? 42 foxes (or 3.14) jump over $5 dogs; A-B_C <tag> [x] {y} ~z|w\\v ^u `t` "
    "unbelievable believability naïve Straße 日本 e=mc2 100% #1 @you & me* \"said\" 'so'! /usr/bin"
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
BERT = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
MPNET = ("[CLS] $A [SEP]", "[CLS] $A [SEP] [SEP] $B [SEP]")


def bert(
    frame: tuple[str, str] = BERT, *, lowercase: bool = True, length: int = LENGTH, vocabulary: str = ""
) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=12))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([CORPUS, vocabulary], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=frame[0], pair=frame[1], special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(length)
    return tokenizer


def byte_level(*, prefix: bool = True, normalizer: Any = None, roberta: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS, " a" * 9, "a.\n\n b" * 5], trainer)
    ends: tuple[tuple[str, int], tuple[str, int]] = ("[SEP]", 3), ("[CLS]", 2)
    tokenizer.post_processor = (
        processors.RobertaProcessing(*ends, add_prefix_space=prefix) if roberta else processors.ByteLevel()
    )
    tokenizer.enable_truncation(LENGTH)
    return tokenizer


def with_tokens(*added: AddedToken, to: Tokenizer | None = None) -> Tokenizer:
    tokenizer = bert() if to is None else to
    tokenizer.add_tokens(list(added))
    return tokenizer


TOKENIZERS = {
    "uncased": bert(),
    "cased": bert(lowercase=False),
    "mpnet": bert(MPNET),
    "short": bert(length=16),
    "added": with_tokens(
        AddedToken("New York", normalized=True),
        AddedToken("RAW", normalized=False),
        AddedToken("é!", normalized=True),
        AddedToken("fox", single_word=True, normalized=True),
        AddedToken(" dogs", lstrip=True, normalized=False),
    ),
    "roberta": byte_level(),
    "roberta without a space": byte_level(prefix=False, normalizer=normalizers.NFC()),
    "gpt2": byte_level(prefix=False, roberta=False),
    "modernbert": with_tokens(
        *(AddedToken(" " * count, normalized=True) for count in range(2, 6)),
        *(AddedToken(f"[unused{index}]", normalized=False) for index in range(40)),
        AddedToken("|||IP|||", normalized=True),
        to=byte_level(prefix=False, normalizer=normalizers.NFC()),
    ),
}
TYPOGRAPHIC = [*map(chr, (*range(0x2010, 0x2016), *range(0x2018, 0x2020), 0x2022, 0x2026))]
PLAIN = st.text(st.sampled_from([chr(code) for code in range(32, 127)] + [*"\t\n\r "] + TYPOGRAPHIC), max_size=20)
PIECES = st.sampled_from(
    [*CORPUS.split(), *CORPUS, " ", "\n", "\t", "New York", "new\tyork", "RAW", "raw", "e!", "FOX"]
)
TEXTS = st.one_of(PLAIN, st.lists(PIECES, max_size=20).map("".join), st.lists(PIECES, max_size=20).map(" ".join))
ANY = st.one_of(
    TEXTS, st.text(max_size=12), st.text(st.sampled_from("aé\u0301ßİ日 \x00\x7f\u200b\ufffd-[CLS]"), max_size=9)
)


def words_of(tokenizer: Tokenizer, length: int = LENGTH) -> Words | None:
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    return Words.of(whole, length)


FAST = {name: words_of(tokenizer, tokenizer.truncation["max_length"]) for name, tokenizer in TOKENIZERS.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(first=ANY, second=st.none() | ANY)
@settings(max_examples=200, deadline=None)
def test_whatever_the_text_is_its_ids_are_the_tokenizers(name: str, first: str, second: str | None):
    texts = (first,) if second is None else (first, second)
    fast = FAST[name]
    assert fast is not None
    found = fast.encode(first if second is None else texts)
    if found is not None:
        expected = TOKENIZERS[name].encode(*texts)
        assert (found.ids, found.type_ids, len(found)) == (expected.ids, expected.type_ids, len(expected))
        assert not expected.overflowing


@pytest.mark.parametrize("name", ["uncased", "mpnet", "roberta", "gpt2"])
@given(text=PLAIN)
def test_a_plain_text_that_fits_is_not_the_tokenizers_work(name: str, text: str):
    fits = not TOKENIZERS[name].encode(text).overflowing
    has_token = any(token in text for token in SPECIAL)
    is_plain = name in ("uncased", "mpnet") or (text != "" and text.isascii())
    fast = FAST[name]
    assert fast is not None
    assert (fast.encode(text) is not None) == (fits and not has_token and is_plain)


@pytest.mark.parametrize("text", ["e! x", "E!", "say [CLS]", "RAW", "new\tyork", "a NEW YORK b", "Fox", "two dogs"])
def test_a_text_with_an_added_token_is_the_tokenizers_work(text: str):
    fast = FAST["added"]
    assert fast is not None
    assert fast.encode(text) is None
    assert fast.encode(("plain", text)) is None


def test_typographic_marks_stand_alone_as_those_of_ascii_do():
    """As words of the vocabulary as well as unknown ones."""
    tokenizer = bert(vocabulary=" ".join(TYPOGRAPHIC[::2]))
    fast = words_of(tokenizer)
    assert fast is not None
    for mark in TYPOGRAPHIC:
        for text in (mark, f"the{mark}fox", f"\u201cthe {mark} fox\u201d", mark * 3):
            found = fast.encode(text)
            assert found is not None
            assert found.ids == tokenizer.encode(text).ids, ascii(text)
    near = [chr(code) for mark in TYPOGRAPHIC for code in (ord(mark) - 1, ord(mark) + 1)]
    assert [text for text in near if text not in TYPOGRAPHIC and fast.encode(text) is not None] == []


def test_a_text_fits_as_long_as_all_of_it_does():
    fast = FAST["uncased"]
    assert fast is not None
    words_only = " ".join(["a"] * (LENGTH - 2))
    assert len(fast.encode(words_only) or ()) == LENGTH
    assert fast.encode(words_only + " a") is None


def test_words_beyond_those_that_are_remembered_are_asked_for_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(words, "_MOST_WORDS", 3)
    tokenizer = bert()
    fast = words_of(tokenizer)
    assert fast is not None
    for text in ("the quick brown fox jump", "fox fox the", "jump " * 9, "unbelievablebelievability " * 2):
        for _ in range(2):
            found = fast.encode(text)
            assert found is not None
            assert found.ids == tokenizer.encode(text).ids
    assert len(fast._known) == 3


@pytest.mark.parametrize("text", ["two  spaces", "[unused7] x", "|||IP|||", "[SEP]"])
def test_an_added_token_among_many_is_found(text: str):
    fast = FAST["modernbert"]
    assert fast is not None
    assert fast.encode(text) is None
    assert fast.encode("a | b [unused]") is not None


def changed(change: Callable[[Tokenizer], Any]) -> Tokenizer:
    tokenizer = bert()
    change(tokenizer)
    return tokenizer


def split(*, use_regex: bool = True, model: Any = None) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=use_regex)
    if model is not None:
        tokenizer.model = model
    return tokenizer


def with_normalizer(normalizer: Any) -> Tokenizer:
    return changed(lambda tokenizer: setattr(tokenizer, "normalizer", normalizer))


@pytest.mark.parametrize(
    "tokenizer",
    [
        with_normalizer(None),
        with_normalizer(normalizers.Lowercase()),
        with_normalizer(normalizers.BertNormalizer(clean_text=False)),
        with_normalizer(normalizers.Sequence([normalizers.Replace("a", "b"), normalizers.BertNormalizer()])),
        changed(lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.Whitespace())),
        changed(lambda tokenizer: tokenizer.add_tokens([f"word{index}" for index in range(40)])),
        Tokenizer(models.BPE()),
        byte_level(normalizer=normalizers.NFKC()),
        split(use_regex=False),
        split(model=models.BPE({"a": 0}, [], dropout=0.1)),
        changed(lambda tokenizer: setattr(tokenizer, "model", models.WordPiece({"a": 0}, unk_token="[UNK]"))),
        split(model=models.BPE({"a": 0, "Ġ": 1}, [], unk_token="[UNK]")),
    ],
    ids=[
        "plain",
        "other",
        "dirty",
        "sequence",
        "whitespace",
        "many-tokens",
        "bpe",
        "nfkc",
        "split-elsewhere",
        "dropout",
        "no-unknown",
        "no-unknown-bytes",
    ],
)
def test_of_other_tokenizers_nothing_is_assumed(tokenizer: Tokenizer):
    assert words_of(tokenizer) is None


@pytest.mark.parametrize("length", [16, 20, 25, 30, 40])
def test_a_pair_of_which_one_text_is_not_cut_may_fill_the_row(length: int):
    tokenizer = bert()
    tokenizer.enable_truncation(length, strategy="only_first")
    fast = words_of(tokenizer, length)
    assert fast is not None
    assert fast.encode(("a", "fox")) is not None
    assert fast.encode(("a", "fox " * length)) is None


def test_a_pair_that_is_turned_round_is_no_frame():
    assert words_of(bert(("[CLS] $A [SEP]", "[CLS] $B [SEP] $A [SEP]")), 8) is None


@pytest.mark.parametrize("text", ["fox " * 400, "a." * 100, "w" * 400])
def test_a_text_that_is_cut_is_the_tokenizers_work(text: str):
    fast = FAST["uncased"]
    assert fast is not None
    assert fast.encode(text) is None


@pytest.mark.parametrize(("pattern", "tokenizer"), [("_BERT", bert()), ("_GPT2", byte_level())])
def test_one_that_answers_a_probe_otherwise_is_asked(monkeypatch: pytest.MonkeyPatch, pattern: str, tokenizer: Any):
    monkeypatch.setattr(cuts, pattern, re.compile(r"\S+"))
    assert words_of(tokenizer) is None
