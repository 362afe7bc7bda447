"""Rows of two texts of which only one is shortened: how long they have to be for the other to fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from export.errors import Refused


def taken(tokenizer: Any, whole: Iterable[str]) -> int:
    """Tokens that are not the shortened text's: the special ones, and the longest of the texts that stay `whole`."""
    return int(tokenizer.num_special_tokens_to_add(True)) + max(
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in whole
    )


def require_length(tag: str, longest: int, shortest: int, positions: int | None) -> int:
    """`longest`, the longest row in tokens. Raises Refused where it is below `shortest`.

    transformers' tokenizers and the worker's raise on the gate's own rows then, or panic.
    """
    if longest >= shortest:
        return longest
    fix = f"give --max-length {shortest} or more"
    if positions is not None and positions < shortest:
        fix = f"it takes {shortest} or more, and the model has {positions} positions; choose another model"
    raise Refused(f"rows of {longest} tokens are too short for {tag}, which puts two texts into each; {fix}")
