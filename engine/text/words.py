"""The ids of plain texts, put together from those of their words, each of which the tokenizer is asked for once.

BERT's tokenizers cut at spaces and around punctuation, and look at nothing beyond a word: the ids of a text are those
of its words, framed by special tokens. tokenizers also keeps, for every character, where it came from; where nobody
asks for that, it is most of what a short text costs before its run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TYPOGRAPHIC = "\u2010-\u2015\u2018-\u201f\u2022\u2026"  # dashes, quotation marks, bullet, ellipsis
_WORD = re.compile(rf"[0-9A-Za-z]+|[!-/:-@\[-`{{-~{_TYPOGRAPHIC}]")
"""What BertPreTokenizer cuts plain text into: all of it that is neither a letter nor a digit is punctuation."""
_NOT_ASCII = re.compile(f"[{_TYPOGRAPHIC}]")
_SPACES = {ord(space): " " for space in "\t\n\r"}
_MOST_WORDS, _LONGEST_WORD = 8_192, 24
"""Of those that are remembered, 2 MB at the most."""
_MOST_ADDED = 16
"""Added tokens, each of which is looked for in every text."""
_SHORTEST = 16
"""Tokens that must fit, so that none of the probes' special tokens is cut off."""
_PROBES = ("It's a probe: 42 words,\nor (say) FEWER!", "", "unquestionably_unsplittable")


@dataclass(slots=True)
class Plain:
    """What a `tokenizers.Encoding` says of a text that was not cut."""

    ids: list[int]
    type_ids: list[int]
    overflowing: Sequence[Any] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _Frame:
    """Special tokens around, and between, so many texts, as runs of ids and of type ids; then the texts' type ids."""

    ids: Sequence[Sequence[int]]
    type_ids: Sequence[Sequence[int]]
    of_texts: Sequence[int]

    def around(self, texts: Sequence[list[int]]) -> Plain:
        ids, type_ids = [*self.ids[0]], [*self.type_ids[0]]
        for index, text in enumerate(texts):
            ids += text
            ids += self.ids[index + 1]
            type_ids += [self.of_texts[index]] * len(text)
            type_ids += self.type_ids[index + 1]
        return Plain(ids, type_ids)


@dataclass
class Words:
    """Encodes plain texts, of ASCII and what word processors make of its dashes and quotation marks, as they are."""

    model: WordPiece
    lowercase: bool
    added: Sequence[str]
    """Tokens that are found in a text as it stands, and `added_normal` those that are once it is normalised."""
    added_normal: Sequence[str]
    max_length: int
    frames: Sequence[_Frame]
    """Of one text, and of a pair."""
    _known: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Tokenizer, max_length: int) -> Words | None:
        """For a tokenizer of which the above is known to hold; None for any other.

        `max_length` is that of its truncation, special tokens included.
        """
        normalizer, model = tokenizer.normalizer, tokenizer.model
        added = tokenizer.get_added_tokens_decoder().values()
        if not (
            type(normalizer) is BertNormalizer
            and normalizer.clean_text
            and type(tokenizer.pre_tokenizer) is BertPreTokenizer
            and type(model) is WordPiece
            and tokenizer.token_to_id(model.unk_token) is not None  # else a word may be none that can be encoded
            and len(added) <= _MOST_ADDED
            and max_length >= _SHORTEST
        ):
            return None
        one, two = _frame(tokenizer, "a"), _frame(tokenizer, "a", "a")
        if one is None or two is None:
            return None
        raw = [token.content for token in added if not token.normalized]
        normal = [normalizer.normalize_str(token.content) for token in added if token.normalized]
        words = cls(model, normalizer.lowercase, raw, normal, max_length, (one, two))
        return words if all(words._agrees(tokenizer, *texts) for texts in _probes()) else None

    def _agrees(self, tokenizer: Tokenizer, *texts: str) -> bool:
        expected = tokenizer.encode(*texts)
        found = self.encode(texts if len(texts) > 1 else texts[0])
        return found is None or (found.ids, found.type_ids) == (expected.ids, expected.type_ids)

    def encode(self, text: str | tuple[str, ...]) -> Plain | None:
        """None where the tokenizer has to be asked."""
        texts = (text,) if isinstance(text, str) else text
        parts = []
        for one in texts:
            if (ids := self._ids(one)) is None:
                return None
            parts.append(ids)
        found = self.frames[len(texts) - 1].around(parts)
        return found if len(found.ids) <= self.max_length else None

    def _ids(self, text: str) -> list[int] | None:
        if not text.isprintable():
            text = text.translate(_SPACES)
            if not text.isprintable():
                return None
        if not (text.isascii() or _NOT_ASCII.sub("", text).isascii()):
            return None
        for token in self.added:
            if token in text:
                return None
        if self.lowercase:
            text = text.lower()
        for token in self.added_normal:
            if token in text:
                return None
        words = _WORD.findall(text)
        try:
            return list(chain.from_iterable(map(self._known.__getitem__, words)))
        except KeyError:
            return list(chain.from_iterable(map(self._looked_up, words)))

    def _looked_up(self, word: str) -> tuple[int, ...]:
        found = self._known.get(word)
        if found is None:
            found = tuple(token.id for token in self.model.tokenize(word))
            if len(self._known) < _MOST_WORDS and len(word) <= _LONGEST_WORD:
                self._known[word] = found
        return found


def _probes() -> Iterator[tuple[str, ...]]:
    for text in _PROBES:
        yield (text,)
        yield text, _PROBES[0]


def _frame(tokenizer: Tokenizer, *texts: str) -> _Frame | None:
    """What the tokenizer puts around `texts` of one token each; None where that is no row of runs."""
    encoding = tokenizer.encode(*texts)
    runs: list[list[int]] = [[]]
    types: list[list[int]] = [[]]
    of_texts = []
    for id_, type_id, special in zip(encoding.ids, encoding.type_ids, encoding.special_tokens_mask, strict=True):
        if special:
            runs[-1].append(id_)
            types[-1].append(type_id)
        else:
            runs.append([])
            types.append([])
            of_texts.append(type_id)
    return _Frame(runs, types, of_texts) if len(of_texts) == len(texts) else None
