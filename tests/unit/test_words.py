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
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from engine.text import cuts, words
from engine.text.characters import LETTERS, PUNCTUATION, SYMBOLS
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


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def split_by(
    pattern: str, *, normalizer: Any = None, behavior: str = "isolated", alphabet: Any = None, **options: bool
) -> Tokenizer:
    """As Qwen's and Llama 3's are."""
    tokenizer = byte_level(roberta=False, normalizer=normalizer)
    byte_alphabet = alphabet or pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior, **options), byte_alphabet]
    )
    return tokenizer


def sentencepiece(*, drops_space: bool, scheme: str = "always", normalizer: Any = None, model: Any = None) -> Tokenizer:
    """As XLM-R's are, of its first models and of later ones."""
    tokenizer = Tokenizer(models.Unigram() if model is None else model)
    clean = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.normalizer = normalizer or clean
    mark = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), mark]) if drops_space else mark
    if model is None:
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=["<s>", "<unk>", "</s>"], unk_token="<unk>", show_progress=False
        )
        tokenizer.train_from_iterator(CORPUS.split() * 2 + [CORPUS], trainer)
        tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
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
    "qwen": split_by(QWEN, normalizer=normalizers.NFC()),
    "llama": split_by(LLAMA),
    "xlm-r": sentencepiece(drops_space=True),
    "bge-m3": sentencepiece(drops_space=False),
    "deberta": sentencepiece(drops_space=False, scheme="first"),
    "as it stands": sentencepiece(drops_space=False, normalizer=normalizers.Replace("~", "")),
}
KINDS = {
    name: re.findall(f"[{part}]", "".join(map(chr, range(128, sys.maxunicode + 1))))
    for name, part in {"letters": LETTERS, "punctuation": PUNCTUATION, "symbols": SYMBOLS}.items()
}
ASCII = [*map(chr, range(32, 127)), *"\t\n\r\xa0 "]
FURTHER = st.one_of(*(st.sampled_from(kind) for kind in KINDS.values()))
PLAIN = st.text(st.sampled_from(ASCII) | FURTHER, max_size=20)
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
