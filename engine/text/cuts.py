"""Where tokenizers cut a plain text into words that they then look at one by one; for those of which that is known."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import NFC, BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TYPOGRAPHIC = "\u2010-\u2015\u2018-\u201f\u2022\u2026"  # dashes, quotation marks, bullet, ellipsis
_BERT = re.compile(rf"[0-9A-Za-z]+|[!-/:-@\[-`{{-~{_TYPOGRAPHIC}]")
"""What BertPreTokenizer cuts plain text into: all of it that is neither a letter nor a digit is punctuation."""
_NOT_ASCII = re.compile(f"[{_TYPOGRAPHIC}]")
_SPACES = {ord(space): " " for space in "\t\n\r"}
_GPT2 = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+",
    re.ASCII,
)
"""GPT-2's pattern, which ByteLevel has inside, in ASCII's letters and digits."""
_AS_LETTERS = str.maketrans(" \t\n\r", "ĠĉĊč")
"""What its alphabet has for bytes that are not printed."""


class Cut(Protocol):
    """How a tokenizer cuts."""

    def normal(self, text: str) -> str | None:
        """`text` as it is cut; None where that takes more than is known here."""
        ...

    def words(self, normal: str) -> list[str]:
        """The words of a text that `normal` gave, in order."""
        ...

    def in_vocabulary(self, word: str) -> str:
        """`word` as the model takes it."""
        ...


@dataclass(frozen=True)
class BertCut:
    """At spaces and around punctuation, in BERT's tokenizers; also where word processors put marks of their own."""

    lowercase: bool

    def normal(self, text: str) -> str | None:
        """As in Cut."""
        if not text.isprintable():
            text = text.translate(_SPACES)
            if not text.isprintable():
                return None
        if not (text.isascii() or _NOT_ASCII.sub("", text).isascii()):
            return None
        return text.lower() if self.lowercase else text

    def words(self, normal: str) -> list[str]:
        """As in Cut."""
        return _BERT.findall(normal)

    def in_vocabulary(self, word: str) -> str:
        """As in Cut."""
        return word


@dataclass(frozen=True)
class ByteLevelCut:
    """As GPT-2 does, a space with the word behind it; of RoBERTa, ModernBERT and many others."""

    begins_with_space: bool

    def normal(self, text: str) -> str | None:
        """As in Cut."""
        if not text or not text.isascii() or not (text.isprintable() or text.translate(_SPACES).isprintable()):
            return None
        return f" {text}" if self.begins_with_space and text[0] != " " else text

    def words(self, normal: str) -> list[str]:
        """As in Cut."""
        return _GPT2.findall(normal)

    def in_vocabulary(self, word: str) -> str:
        """As in Cut."""
        return word.translate(_AS_LETTERS)


def cut_of(tokenizer: Tokenizer) -> Cut | None:
    """How `tokenizer` cuts, where that is known."""
    normalizer, model, splitter = tokenizer.normalizer, tokenizer.model, tokenizer.pre_tokenizer
    kinds = type(normalizer), type(splitter), type(model)
    if kinds == (BertNormalizer, BertPreTokenizer, WordPiece):
        return BertCut(normalizer.lowercase) if normalizer.clean_text and _encodes_all(model) else None
    if kinds in ((type(None), ByteLevel, BPE), (NFC, ByteLevel, BPE)) and splitter.use_regex and not model.dropout:
        return ByteLevelCut(splitter.add_prefix_space) if _encodes_all(model) else None
    return None


def _encodes_all(model: BPE | WordPiece) -> bool:
    """Whether it raises for no word: its unknown token, where it has one, is in its own vocabulary."""
    return model.unk_token is None or model.token_to_id(model.unk_token) is not None
