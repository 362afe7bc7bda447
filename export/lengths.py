"""How many tokens a text may have: what was asked for, what the files say, what the architecture can do."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from export.errors import Refused

if TYPE_CHECKING:
    from export.source import Source

LONGEST_DEFAULT = 8192
"""Tokens. Models that name no limit, or a huge one, get this: attention's cost grows with the square of the length."""


def longest_row(asked: int | None, of_files: float, positions: int | None, tokenizer: Any) -> int:
    """The longest row in tokens: what was asked for, else the smallest limit that applies. Raises Refused.

    `of_files` may be infinite, or a float such as 512.0, as JSON has it.
    """
    longest = int(min(of_files, positions or LONGEST_DEFAULT, LONGEST_DEFAULT)) if asked is None else asked
    if positions is not None and longest > positions:
        raise Refused(f"--max-length {asked} is more than the {positions} positions that the model has; give fewer")
    # Where special tokens alone are more than that, the tokenizers library does not cut at all.
    special = max(tokenizer.num_special_tokens_to_add(is_pair) for is_pair in (False, True))
    if longest <= special:
        raise Refused(
            f"rows of {longest} tokens have no room beside {special} special ones; give a larger --max-length"
        )
    return longest


def trained_length(config: Any) -> float:
    """Tokens that sentence-transformers cuts at where its own files name no number."""
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else inf  # XLNet says -1


def described_length(source: Source) -> str:
    """The longest row, and that the model takes longer ones where they are left out for what they cost."""
    is_capped = source.max_length == LONGEST_DEFAULT < (source.positions or 0)
    return f"up to {source.max_length} tokens{f' of its {source.positions} (--max-length)' if is_capped else ''}"
