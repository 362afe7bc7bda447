"""Texts of rare tokens, for the gate: their embeddings were trained least and stand out most. And of added ones.

Only what a text can come to is drawn: pieces that the tokenizer makes of nothing, such as BERT's [unused1], no caller
can send.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

_TEXTS = 3
_TOKENS = 24  # a text
_DRAWN = 4096
"""Tokens that are tried; those that are written only inside of words are among them, and are left out."""
_BEFORE = "a"
"""Stands before a word that is tried: byte-level vocabularies have other tokens for the first word of a text."""


def rare_texts(tokenizer: Any, ordinary: Iterable[str]) -> Iterator[str]:
    """A few texts of tokens of `tokenizer` that none of the `ordinary` texts holds; the same ones at every call.

    `tokenizer` is transformers'. None where the ordinary texts hold all that can be written.
    """
    seen = {one for row in _ids(tokenizer, list(ordinary)) for one in row} | set(tokenizer.all_special_ids)
    rare = sorted(set(tokenizer.get_vocab().values()) - seen)
    rare = rare[len(rare) // 2 :]  # vocabularies begin with what is frequent
    draw = random.Random(0)  # noqa: S311 - the same model has to meet the same texts again
    drawn = draw.sample(rare, min(_DRAWN, len(rare)))
    words = [tokenizer.decode([one], clean_up_tokenization_spaces=False).strip() for one in drawn]
    (before,) = _ids(tokenizer, [_BEFORE])
    again = _ids(tokenizer, [f"{_BEFORE} {word}" for word in words])
    kept = [word for one, word, row in zip(drawn, words, again, strict=True) if word and row == [*before, one]]
    for start in range(0, min(len(kept), _TEXTS * _TOKENS), _TOKENS):
        yield " ".join(kept[start : start + _TOKENS])


def added_texts(tokenizer: Any) -> Iterator[str]:
    """A text of words that were added to `tokenizer`, which it looks for before it cuts a text; none without any."""
    found = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.special]
    added = [one for one in found if one not in tokenizer.all_special_tokens]
    if added:
        draw = random.Random(0)  # noqa: S311 - the same model has to meet the same text again
        yield " ".join(draw.sample(added, min(_TOKENS, len(added))))


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The tokens of every text, without special ones, however long it is."""
    if not texts:
        return []
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return found
