"""The ids of plain texts, put together from those of their words, each of which the tokenizer is asked for once.

Many tokenizers cut a text first, and look at nothing beyond a word: the ids of a text are those of its words, framed by
special tokens. tokenizers also keeps, for every character, where it came from; where nobody asks for that, it is most
of what a short text costs before its run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from engine.text.cuts import Cut, cut_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MOST_WORDS, _LONGEST_WORD = 8_192, 24
"""Of those that are remembered, 2 MB at the most."""
_MOST_SIGNS = 16
"""Of added tokens, each of which is looked for in every text."""
_ORDINARY = " .,'-"  # besides letters and digits; other characters are signs
_CHARS_PER_TOKEN = 16
"""Of a text that is surely cut, so that nobody looks for its words."""
_PROBES = ("It's a probe: 42 words,\nor (say) FEWER!", "", "unquestionably_unsplittable", " a probe", "\x01a probe")


@dataclass(slots=True)
class Plain:
    """What a row needs of a `tokenizers.Encoding`: ids and type ids, as lists or arrays."""

    ids: Any
    type_ids: Any
    rest: int = 0
    """Tokens that were cut off."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Frame:
    """Special tokens around, and between, so many texts, as runs of ids and of type ids; then the texts' type ids."""

    ids: Sequence[Sequence[int]]
    type_ids: Sequence[Sequence[int]]
    of_texts: Sequence[int]

    def around(self, texts: Sequence[list[int]]) -> Plain:
        """The row of `texts`, none of which is cut."""
        ids, type_ids = [*self.ids[0]], [*self.type_ids[0]]
        for index, text in enumerate(texts):
            ids += text
            ids += self.ids[index + 1]
            type_ids += [self.of_texts[index]] * len(text)
            type_ids += self.type_ids[index + 1]
        return Plain(ids, type_ids)


@dataclass
class Words:
    """Encodes plain texts as `tokenizer` does, where they are not to be cut."""

    model: Any
    cut: Cut
    added: Mapping[str, Sequence[str]]
    """Tokens that are found in a text as it stands, by a sign that each has: a character, or all of it."""
    added_normal: Mapping[str, Sequence[str]]
    """Those that are found in it once it is normalised."""
    max_length: int
    frames: Sequence[Frame]
    """Of one text, and of a pair."""
    _known: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Tokenizer, max_length: int) -> Words | None:
        """For a tokenizer of which the above is known to hold; None for any other.

        `tokenizer` truncates nothing; texts of more than `max_length` tokens, special ones included, are not for it.
        """
        cut = cut_of(tokenizer)
        if cut is None:
            return None
        one, two = frame_of(tokenizer, "a"), frame_of(tokenizer, "a", "a")
        if one is None or two is None:
            return None
        tokens, normalizer = tokenizer.get_added_tokens_decoder().values(), tokenizer.normalizer
        raw = _by_sign([token.content for token in tokens if not token.normalized])
        contents = [token.content for token in tokens if token.normalized]
        normal = _by_sign([normalizer.normalize_str(one) if normalizer is not None else one for one in contents])
        if len(raw) + len(normal) > _MOST_SIGNS:
            return None
        words = cls(tokenizer.model, cut, raw, normal, max_length, (one, two))
        return words if all(words._agrees(tokenizer, *texts) for texts in _probes()) else None

    def _agrees(self, tokenizer: Tokenizer, *texts: str) -> bool:
        expected = tokenizer.encode(*texts)
        parts = [ids for text in texts if (ids := self._ids(text)) is not None]
        if len(parts) < len(texts):
            return True
        found = self.frames[len(texts) - 1].around(parts)
        return (found.ids, found.type_ids) == (expected.ids, expected.type_ids)

    def encode(self, text: str | tuple[str, ...]) -> Plain | None:
        """None where the tokenizer has to be asked."""
        texts = (text,) if isinstance(text, str) else text
        parts = []
        for one in texts:
            ids = self._ids(one) if len(one) <= _CHARS_PER_TOKEN * self.max_length else None
            if ids is None or len(ids) > self.max_length:
                return None
            parts.append(ids)
        found = self.frames[len(texts) - 1].around(parts)
        return found if len(found.ids) <= self.max_length else None

    def _ids(self, text: str) -> list[int] | None:
        normal = self.cut.normal(text)
        if normal is None or _has_one(self.added, text) or _has_one(self.added_normal, normal):
            return None
        words = self.cut.words(normal)
        try:
            return list(chain.from_iterable(map(self._known.__getitem__, words)))
        except KeyError:
            return list(chain.from_iterable(map(self._looked_up, words)))

    def _looked_up(self, word: str) -> tuple[int, ...]:
        found = self._known.get(word)
        if found is None:
            found = tuple(token.id for token in self.model.tokenize(self.cut.in_vocabulary(word)))
            if len(self._known) < _MOST_WORDS and len(word) <= _LONGEST_WORD:
                self._known[word] = found
        return found


def _by_sign(tokens: Sequence[str]) -> dict[str, list[str]]:
    """`tokens` by what a text without them hardly has: the first of their characters that is none of ordinary text."""
    found: dict[str, list[str]] = {}
    for token in tokens:
        sign = next((one for one in token if not (one.isalnum() or one in _ORDINARY)), token)
        found.setdefault(sign, []).append(token)
    return found


def _has_one(tokens: Mapping[str, Sequence[str]], text: str) -> bool:
    return any(sign in text and any(token in text for token in whole) for sign, whole in tokens.items())


def _probes() -> Iterator[tuple[str, ...]]:
    for text in _PROBES:
        yield (text,)
        yield text, _PROBES[0]


def frame_of(tokenizer: Tokenizer, *texts: str) -> Frame | None:
    """What the tokenizer puts around `texts`; None where that is no row of runs."""
    encoding = tokenizer.encode(*texts)
    runs: list[list[int]] = [[]]
    types: list[list[int]] = [[]]
    of_texts: dict[int | None, int] = {}
    marks = zip(encoding.special_tokens_mask, encoding.sequence_ids, strict=True)
    for id_, type_id, (special, text) in zip(encoding.ids, encoding.type_ids, marks, strict=True):
        if special:
            runs[-1].append(id_)
            types[-1].append(type_id)
        elif text not in of_texts:
            of_texts[text] = type_id
            runs.append([])
            types.append([])
    return Frame(runs, types, list(of_texts.values())) if list(of_texts) == list(range(len(texts))) else None
