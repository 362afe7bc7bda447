"""From scored tokens to entities: the aggregation strategies of transformers' pipeline. Rule: pure.

none     every token
simple   neighbours of one tag, begun anew by B-
first    as simple, on words; a word has the label of its first token
average  ... the best label of its tokens' mean scores
max      ... the label of its best token
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from engine.tensors import Array

STRATEGIES = ("none", "simple", "first", "average", "max")

Entity: TypeAlias = dict[str, Any]
"""As it is in the reply."""


@dataclass(frozen=True)
class Token:
    """A token with its scores (a label each) and its place: characters, and `index` among the row's tokens."""

    word: str
    scores: Array
    start: int
    end: int
    index: int
    is_subword: bool


class Aggregation:
    """One strategy on one model's labels."""

    def __init__(self, tokenizer: Tokenizer, labels: Sequence[str], strategy: str) -> None:
        self._decoder = tokenizer.decoder
        self._labels = labels
        self._strategy = strategy

    def entities(self, tokens: Sequence[Token]) -> list[Entity]:
        """The entities that the tokens of one window make."""
        if self._strategy == "none":
            return [self._token_entity(token) for token in tokens]
        if self._strategy == "simple":
            found = [self._token_entity(token) for token in tokens]
        else:
            found = [self._word_entity(word) for word in _words(tokens)]
        return [self._group(group) for group in _groups(found)]

    def _token_entity(self, token: Token) -> Entity:
        best = int(token.scores.argmax())
        return {
            "entity": self._labels[best],
            "score": float(token.scores[best]),
            "index": token.index,
            "word": token.word,
            "start": token.start,
            "end": token.end,
        }

    def _word_entity(self, tokens: Sequence[Token]) -> Entity:
        if self._strategy == "first" or len(tokens) == 1:  # as most words are
            scores = tokens[0].scores
        elif self._strategy == "max":
            scores = max(tokens, key=lambda token: float(token.scores.max())).scores
        else:
            scores = np.mean([token.scores for token in tokens], axis=0)
        best = int(scores.argmax())
        return {
            "entity": self._labels[best],
            "score": float(scores[best]),
            "word": self._text([token.word for token in tokens]),
            "start": tokens[0].start,
            "end": tokens[-1].end,
        }

    def _group(self, entities: Sequence[Entity]) -> Entity:
        scores = [entity["score"] for entity in entities]
        return {
            "entity_group": entities[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean(scores)) if len(scores) > 1 else scores[0],
            "word": self._text([entity["word"] for entity in entities]),
            "start": entities[0]["start"],
            "end": entities[-1]["end"],
        }

    def _text(self, words: list[str]) -> str:
        return str(self._decoder.decode(words)) if self._decoder is not None else " ".join(words)


def _words(tokens: Sequence[Token]) -> list[list[Token]]:
    words: list[list[Token]] = []
    for token in tokens:
        if words and token.is_subword:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _groups(entities: Sequence[Entity]) -> list[list[Entity]]:
    """Neighbours of one tag; a label without B- or I- continues its like."""
    groups: list[list[Entity]] = []
    for entity in entities:
        begins, tag = _tag(entity["entity"])
        if groups and not begins and tag == _tag(groups[-1][-1]["entity"])[1]:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return groups


def _tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and which."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def merge_windows(entities: Sequence[Entity]) -> list[Entity]:
    """Of entities that overlap, as windows that share tokens find them, the longer one, or the one of higher score.

    As transformers' pipeline does, but for entities of no width, such as the piece that SentencePiece puts before a
    text: each is listed once. There the first of a text is listed twice, and any other once a window.
    """
    merged: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        last = merged[-1] if merged else None
        if last is None or not _overlap(last, entity):
            merged.append(entity)
        elif _weight(entity) > _weight(last):
            merged[-1] = entity
    return merged


def _overlap(last: Entity, entity: Entity) -> bool:
    """Of two in the order of their starts; one without width overlaps its like."""
    return bool(entity["start"] < last["end"] or (entity["start"], entity["end"]) == (last["start"], last["end"]))


def _weight(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
