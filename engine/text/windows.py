"""A window of a long text: what rows and answers need of it, in arrays; an `Encoding` takes many times the memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.text.bulk import FEW

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.tensors import Array

_NONE = -1
_CHARS_PER_TOKEN = 4  # of English; of scripts without spaces, each is one


@dataclass(frozen=True, slots=True)
class Window:
    """A number for each token; -1 is none."""

    ids: Array
    type_ids: Array
    offsets: Array
    """Where it begins and ends, in characters of its text."""
    words: Array
    texts: Array
    """0 and 1 of a pair."""
    is_special: Array
    rest: int
    """Tokens of the text beyond one window."""

    def offsets_of_words(self) -> Array:
        """Like `offsets`, of the word that each token belongs to; nonsense for one without."""
        is_edge = np.ones(len(self.words) + 1, np.bool_)
        is_edge[1:-1] = (self.words[1:] != self.words[:-1]) | (self.texts[1:] != self.texts[:-1])
        edges = np.flatnonzero(is_edge)
        counts = edges[1:] - edges[:-1]
        found = np.empty_like(self.offsets)
        found[:, 0] = self.offsets[edges[:-1], 0].repeat(counts)
        found[:, 1] = self.offsets[edges[1:] - 1, 1].repeat(counts)
        return found


def window_of(encoding: Any, rest: int, *, sets_segments: bool) -> Window:
    """Of a row; without `sets_segments`, its type ids are the numbers of the texts."""
    texts = [_NONE if one is None else one for one in encoding.sequence_ids]
    segments = encoding.type_ids if sets_segments else [max(0, one) for one in texts]
    words = [_NONE if one is None else one for one in encoding.word_ids]
    offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int32, 2 * len(texts))
    return Window(
        np.array(encoding.ids, np.int32),
        np.array(segments, np.int32),
        offsets.reshape(-1, 2),
        np.array(words, np.int32),
        np.array(texts, np.int8),
        np.array(encoding.special_tokens_mask, np.bool_),
        rest,
    )


def are_few_windows(texts: Iterable[str], step: int) -> bool:
    """Whether an event loop may make the windows of `texts`, each `step` tokens behind the one before it.

    Never where that is none: they may be no more than one all the same, or be refused.
    """
    return step > 0 and sum(1 + _about_tokens(text) // step for text in texts) <= FEW


def _about_tokens(text: str) -> int:
    ascii_only = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    return ascii_only // _CHARS_PER_TOKEN + len(text) - ascii_only
