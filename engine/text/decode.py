"""From tokens back to text, as transformers' tokenizers do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CLOSED_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
"""Spaces that word-piece tokenizers put before punctuation and English contractions, in transformers' order."""


def decode(tokenizer: Tokenizer, ids: Sequence[int], *, skip_special: bool, clean_up: bool) -> str:
    """The text of `ids`; `clean_up` closes up punctuation."""
    text = str(tokenizer.decode(list(ids), skip_special_tokens=skip_special))
    return close_up(text) if clean_up else text


def close_up(text: str) -> str:
    """`text` without those spaces: transformers' clean_up_tokenization."""
    for apart, together in _CLOSED_UP:
        text = text.replace(apart, together)
    return text
