"""Texts put together from their words are what the tokenizer makes of them, or the tokenizer is asked."""

import re
import string
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from engine.text import cuts, words
from engine.text.words import Words
from tests.tokenizer_kinds import (
    ANY,
    KINDS,
    LENGTH,
    PLAIN,
    QWEN,
    SPECIAL,
    TOKENIZERS,
    bert,
    byte_level,
    sentencepiece,
    split_by,
)


def words_of(tokenizer: Tokenizer, length: int = LENGTH) -> Words | None:
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    return Words.of(whole, length)


FAST = {name: words_of(tokenizer, tokenizer.truncation["max_length"]) for name, tokenizer in TOKENIZERS.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(first=ANY, second=st.none() | ANY)
@settings(max_examples=80)
def test_whatever_the_text_is_its_ids_are_the_tokenizers(name: str, first: str, second: str | None):
    texts = (first,) if second is None else (first, second)
    fast = FAST[name]
    assert fast is not None
    found = fast.encode(first if second is None else texts)
    if found is not None:
        expected = TOKENIZERS[name].encode(*texts)
        assert (found.ids, found.type_ids, len(found)) == (expected.ids, expected.type_ids, len(expected))
        assert not expected.overflowing


@pytest.mark.parametrize("name", ["cased", "mpnet", "roberta", "gpt2", "qwen", "llama", "xlm-r", "bge-m3"])
@given(text=PLAIN)
def test_a_plain_text_that_fits_is_not_the_tokenizers_work(name: str, text: str):
    fits = not TOKENIZERS[name].encode(text).overflowing
    has_token = any(token in text for token in [*SPECIAL, "<s>", "<unk>", "</s>", "<mask>"])
    # An uncased one takes letters apart, and so does NFKC; what comes of that need not be plain.
    is_plain = name not in ("mpnet", "xlm-r", "bge-m3") or text.isascii()
    fast = FAST[name]
    assert fast is not None
    found = fast.encode(text)
    assert found is not None or not (fits and not has_token and is_plain and text)
    assert found is None or fits


@pytest.mark.parametrize("text", ["e! x", "E!", "say [CLS]", "RAW", "new\tyork", "a NEW YORK b", "Fox", "two dogs"])
def test_a_text_with_an_added_token_is_the_tokenizers_work(text: str):
    fast = FAST["added"]
    assert fast is not None
    assert fast.encode(text) is None
    assert fast.encode(("plain", text)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_characters_are_what_tokenizers_take_them_for(kind: str):
    """Each one, for what stands in the table is in no tokenizer's corpus here."""
    seconds = {
        parts[1]
        for code in range(sys.maxunicode + 1)
        if len(parts := unicodedata.decomposition(chr(code)).split()) == 2 and not parts[0].startswith("<")
    }
    letters, numbers, spaces, others = (
        pre_tokenizers.Split(Regex(pattern), "removed") for pattern in (r"\p{L}", r"\p{N}", r"\s", r"[^\s\p{L}\p{N}]")
    )
    bert_words, nfc = pre_tokenizers.BertPreTokenizer(), normalizers.NFC()
    wrong = []
    for one in KINDS[kind]:
        is_removed = [splitter.pre_tokenize_str(one) == [] for splitter in (letters, numbers, spaces, others)]
        is_right = is_removed == [kind == "letters", False, False, kind != "letters"]
        is_right &= len(bert_words.pre_tokenize_str(f"a{one}b")) == (3 if kind == "punctuation" else 1)
        is_right &= nfc.normalize_str(one) == one and not unicodedata.combining(one)
        is_right &= f"{ord(one):04X}" not in seconds and one not in string.ascii_letters + string.digits
        # A pattern that looks at no case finds what has the same one.
        is_right &= re.fullmatch(r"(?i:[strevmld])", one) is None and one != "\u2581"
        wrong += [] if is_right else [ascii(one)]
    assert wrong == []
    assert len(KINDS[kind]) == {"letters": 33376, "punctuation": 90, "symbols": 1992}[kind]


@pytest.mark.parametrize(
    "text", ["x\u00b2", "\u2167", "\u017f", "e\u0301", "\u0e01", "\u2003.", "\x00", "\x85", "\u03a2"]
)
def test_other_characters_are_the_tokenizers_work(text: str):
    fast = FAST["gpt2"]
    assert fast is not None
    assert fast.encode(text) is None


def test_words_of_a_text_are_what_is_remembered():
    """Of any script, where spaces alone cut; a mark that stands for one is the tokenizer's work."""
    fast = FAST["xlm-r"]
    assert fast is not None
    assert fast.encode("\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35") is not None
    assert fast.encode("fox\u2581dog") is None
    assert fast.encode("fox\x1cdog") is None
    assert {"\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35"} <= set(fast._known)


@pytest.mark.parametrize(
    ("name", "text"),
    [("t5", "\x01the fox"), ("t5", "\x7f\x02fox"), ("stripped", " the fox"), ("prefix removed", "the fox")],
)
def test_a_text_whose_first_characters_are_taken_away_is_the_tokenizers_work(name: str, text: str):
    """Then a mark of the first word alone stands before none."""
    fast, tokenizer = FAST[name], TOKENIZERS[name]
    assert fast is not None
    assert fast.encode(text) is None
    assert fast.encode(("fox", text)) is None
    for other in ("fox the", "\u65e5 fox", "foxes \x01"):
        found = fast.encode(other)
        assert found is not None
        assert found.ids == tokenizer.encode(other).ids


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
        split_by(r"\p{L}+"),
        split_by(QWEN, behavior="removed"),
        split_by(QWEN, invert=True),
        split_by(QWEN, alphabet=pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)),
        split_by(QWEN, alphabet=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)),
        sentencepiece(drops_space=False, scheme="never"),
        sentencepiece(drops_space=True, scheme="first"),
        sentencepiece(drops_space=True, model=models.Unigram([("a", -1.0)])),
        sentencepiece(drops_space=True, model=models.BPE()),
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
        "other-pattern",
        "removed",
        "inverted",
        "a-space-before-words",
        "cut-twice",
        "no-mark",
        "mark-of-the-first",
        "no-unknown-piece",
        "metaspace-bpe",
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
    monkeypatch.setattr(cuts, pattern, r"\S+")
    assert words_of(tokenizer) is None
