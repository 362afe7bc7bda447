"""Tokenizers of every kind that models come with, small, and texts that they treat in their own ways."""

import re
import sys
from typing import Any

from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from engine.text.characters import LETTERS, PUNCTUATION, SYMBOLS

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


def unnormalized(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = None
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
    "t5": sentencepiece(
        drops_space=False,
        scheme="first",
        normalizer=normalizers.Sequence(
            [
                normalizers.Nmt(),
                normalizers.NFKC(),
                normalizers.Strip(left=False, right=True),
                normalizers.Replace(Regex(" {2,}"), " "),
            ]
        ),
    ),
    "stripped": sentencepiece(drops_space=False, scheme="first", normalizer=normalizers.Strip()),
    "prefix removed": sentencepiece(
        drops_space=False, scheme="first", normalizer=normalizers.Replace(Regex("^the "), "")
    ),
    "of the first, as it stands": unnormalized(sentencepiece(drops_space=False, scheme="first")),
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
