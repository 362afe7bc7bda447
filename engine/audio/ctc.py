"""From a CTC model's tokens, one a frame, to text and timestamps, as Wav2Vec2CTCTokenizer decodes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.tensors import Array
from engine.text.decode import close_up


@dataclass(frozen=True, slots=True)
class Piece:
    """A character or word and the frames that it spans, `end` excluded."""

    text: str
    start: int
    end: int


class CtcVocabulary:
    """Tokens by id and how they become text.

    `config`: pad (the blank), delimiter (a token) and space (what it becomes), lowercase, clean_up.
    """

    def __init__(self, tokens: Sequence[str], config: Mapping[str, Any]) -> None:
        self._space = str(config["space"])
        self._lowercase, self._clean_up = bool(config["lowercase"]), bool(config["clean_up"])
        # Ids that mean the same token count as one when repetitions are merged.
        first: dict[str, int] = {}
        self._same = np.array([first.setdefault(token, index) for index, token in enumerate(tokens)])
        self._shown = [self._space if token == config["delimiter"] else token for token in tokens]
        self._is_blank = np.array([token == config["pad"] for token in tokens])

    def characters(self, ids: Array) -> list[Piece]:
        """The characters of `ids` (a token a frame): repetitions merged, blanks dropped."""
        if not len(ids):
            return []
        ids = self._same[ids]
        starts = np.concatenate(([0], np.flatnonzero(np.diff(ids)) + 1))
        ends = np.append(starts[1:], len(ids))
        kept = ~self._is_blank[ids[starts]]
        runs = zip(ids[starts][kept].tolist(), starts[kept].tolist(), ends[kept].tolist(), strict=True)
        return [Piece(self._shown[token], start, end) for token, start, end in runs]

    def text(self, characters: Sequence[Piece]) -> str:
        """The characters as one text."""
        text = "".join(piece.text for piece in characters).strip()
        text = text.lower() if self._lowercase else text
        return close_up(text) if self._clean_up else text

    def words(self, characters: Sequence[Piece]) -> list[Piece]:
        """The characters between spaces, joined."""
        words: list[Piece] = []
        word: list[Piece] = []
        for piece in characters:
            if piece.text != self._space:
                word.append(piece)
            elif word:
                words.append(_joined(word))
                word = []
        return [*words, _joined(word)] if word else words


def _joined(word: Sequence[Piece]) -> Piece:
    return Piece("".join(piece.text for piece in word), word[0].start, word[-1].end)
