"""Where tokenizers cut a plain text into words that they then look at one by one; for those of which that is known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from tokenizers import PreTokenizedString
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.normalizers import NFC, BertNormalizer

from engine.text.characters import LETTERS, PUNCTUATION, SYMBOLS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Normalize: TypeAlias = Callable[[str], str]

_BEYOND_ASCII = {"letters": LETTERS, "punctuation": PUNCTUATION, "symbols": SYMBOLS}
_PLAIN = r"[ -~\t\n\r\xa0{letters}{punctuation}{symbols}]*"
_BERT = r"[0-9{letters}{symbols}]+|[!-/:-@\[-`{{-~{punctuation}]"
"""What BertPreTokenizer cuts plain text into; what is neither a letter nor a digit in ASCII is punctuation to it."""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?[{letters}]+| ?[0-9]+| ?[^\s0-9{letters}]+|\s+(?!\S)|\s+"
"""GPT-2's pattern, which ByteLevel has inside, in the letters and digits of plain text."""
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n0-9{letters}]?[{letters}]+|[0-9]| ?[^\s0-9{letters}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
)
"""Qwen's pattern, and the same for plain text; Llama's, from 3 on, has up to three digits in a word."""
_SPLITS = dict(
    [_SPLIT, (_SPLIT[0].replace(r"|\p{N}|", r"|\p{N}{1,3}|"), _SPLIT[1].replace("|[0-9]|", "|[0-9]{{1,3}}|"))]
)
_SPACES = {ord(space): " " for space in "\t\n\r"}
_BYTES = dict(zip((*range(33), *range(127, 161), 173), map(chr, range(256, 324)), strict=True))
"""What GPT-2's alphabet (bytes_to_unicode) has for bytes that are not printed; the others are as in Latin-1."""
_MARK = "\u2581"
"""What stands for a space in SentencePiece's vocabularies."""
_SPACES_TO_PYTHON = re.compile("[\x1c-\x1f]")
"""But not to Unicode, and to tokenizers."""


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


class _Characters(dict[int, str]):
    """What a normalizer makes of each character, by its code point, for one that looks at no two of them together."""

    def __init__(self, normalize: Normalize) -> None:
        super().__init__()
        self._normalize = normalize

    def __missing__(self, code: int) -> str:
        self[code] = found = self._normalize(chr(code))
        return found


@dataclass(frozen=True)
class BertCut:
    """At spaces and around punctuation, in BERT's tokenizers."""

    lowercase: bool
    characters: _Characters

    def normal(self, text: str) -> str | None:
        """As in Cut."""
        if text.isascii():
            if not text.isprintable():
                text = text.translate(_SPACES)
                if not text.isprintable():
                    return None
            return text.lower() if self.lowercase else text
        if not _pattern(_PLAIN, False).fullmatch(text):
            return None
        normal = text.translate(self.characters)
        return normal if _pattern(_PLAIN, normal.isascii()).fullmatch(normal) else None

    def words(self, normal: str) -> list[str]:
        """As in Cut."""
        return _pattern(_BERT, normal.isascii()).findall(normal)

    def in_vocabulary(self, word: str) -> str:
        """As in Cut."""
        return word


@dataclass(frozen=True)
class ByteLevelCut:
    """By a pattern, most often a space with the word behind it; of GPT-2, RoBERTa, ModernBERT, Qwen and many others."""

    pattern: str
    begins_with_space: bool

    def normal(self, text: str) -> str | None:
        """As in Cut."""
        if not text or not _pattern(_PLAIN, text.isascii()).fullmatch(text):
            return None
        return f" {text}" if self.begins_with_space and text[0] != " " else text

    def words(self, normal: str) -> list[str]:
        """As in Cut."""
        return _pattern(self.pattern, normal.isascii()).findall(normal)

    def in_vocabulary(self, word: str) -> str:
        """As in Cut."""
        return word.encode().decode("latin-1").translate(_BYTES)


@dataclass(frozen=True)
class MetaspaceCut:
    """Before every space, which is part of the word; of SentencePiece: XLM-R, multilingual E5, BGE-M3, DeBERTa, T5."""

    normalize: Callable[[str], str | None]
    drops_space: bool
    """Whether a run of any kind of space counts as one, and none at the ends."""

    def normal(self, text: str) -> str | None:
        """As in Cut."""
        normal = self.normalize(text)
        if normal is None or _MARK in normal or (self.drops_space and _SPACES_TO_PYTHON.search(normal)):
            return None
        return normal

    def words(self, normal: str) -> list[str]:
        """As in Cut."""
        if self.drops_space:
            return normal.split()
        if not normal:
            return []
        return (normal[1:] if normal[0] == " " else normal).split(" ")

    def in_vocabulary(self, word: str) -> str:
        """As in Cut."""
        return _MARK + word


def cut_of(tokenizer: Tokenizer) -> Cut | None:
    """How `tokenizer` cuts, where that is known."""
    normalizer, model = tokenizer.normalizer, tokenizer.model
    steps = _steps(tokenizer.pre_tokenizer)
    if not steps or not _encodes_all(model):
        return None
    kinds, last = [step["type"] for step in steps], steps[-1]
    if isinstance(model, WordPiece):
        knows = kinds == ["BertPreTokenizer"] and type(normalizer) is BertNormalizer and normalizer.clean_text
        return BertCut(normalizer.lowercase, _Characters(normalizer.normalize_str)) if knows else None
    if isinstance(model, BPE) and kinds[-1] == "ByteLevel":
        pattern = _byte_level_pattern(steps) if type(normalizer) in (type(None), NFC) and not model.dropout else None
        return ByteLevelCut(pattern, last["add_prefix_space"]) if pattern else None
    if isinstance(model, Unigram) and last.get("split") and last["replacement"] == _MARK:
        normalize = str if normalizer is None else normalizer.normalize_str
        if kinds == ["WhitespaceSplit", "Metaspace"] and last["prepend_scheme"] == "always":
            return MetaspaceCut(normalize, drops_space=True)
        if kinds == ["Metaspace"] and last["prepend_scheme"] == "always":
            return MetaspaceCut(normalize, drops_space=False)
        if kinds == ["Metaspace"] and last["prepend_scheme"] == "first":
            return MetaspaceCut(normalize if normalizer is None else _from_the_start(normalizer), drops_space=False)
    return None


def _from_the_start(normalizer: Any) -> Callable[[str], str | None]:
    """What `normalizer` makes of a text; None where it takes away the first of it, for then no mark is put before."""

    def normalize(text: str) -> str | None:
        whole = PreTokenizedString(text)
        whole.normalize(normalizer.normalize)
        whole.split(lambda _, normal: [normal[:]])  # as it is split at added tokens, which notes where it begins
        for normal, (first, _), _ in whole.get_splits("original"):
            return None if first else normal
        return ""

    return normalize


def _steps(splitter: Any) -> list[dict[str, Any]]:
    """Settings of what cuts, one after the other."""
    if splitter is None:
        return []
    state = json.loads(splitter.__getstate__())
    return list(state["pretokenizers"]) if state["type"] == "Sequence" else [state]


def _byte_level_pattern(steps: list[dict[str, Any]]) -> str | None:
    match steps:
        case [{"use_regex": True}]:
            return _GPT2
        case [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"use_regex": False, "add_prefix_space": False},
        ]:
            return _SPLITS.get(pattern)
    return None


@cache
def _pattern(template: str, is_ascii: bool) -> re.Pattern[str]:
    """For texts of ASCII alone, or of all that is plain: milliseconds, which no boot takes."""
    beyond = dict.fromkeys(_BEYOND_ASCII, "") if is_ascii else _BEYOND_ASCII
    return re.compile(template.format(**{**beyond, "letters": "A-Za-z" + beyond["letters"]}))


def _encodes_all(model: Any) -> bool:
    """Whether it raises for no word: its unknown token, where it needs one, is in its own vocabulary."""
    try:
        model.tokenize("\U0010fffd")
    except Exception:  # bare ones of tokenizers
        return False
    return True
