"""A tokenizer against the embeddings of its model: a token that has none ends in an error of the engine."""

from __future__ import annotations

from math import inf
from typing import Any

from export.errors import Refused


def rows_of(model: Any, config: Any) -> int | None:
    """How many tokens `model` has embeddings of; None where that is not told."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # of two towers, or of the model's own code
        table = None
    of_texts = getattr(config, "text_config", config)
    rows = getattr(table, "num_embeddings", None) or getattr(of_texts, "vocab_size", None)
    return rows if isinstance(rows, int) else None


def check_tokens(model: str, tokenizer: Any, rows: int | None) -> None:
    """Raise Refused where a text can hold a token that the model has no embedding of; None for what reads no texts.

    The token that pads may be one: it is given to Llama and others without another embedding, and nothing need look it
    up, for the mask hides padding.
    """
    if rows is None or not getattr(tokenizer, "is_fast", False):  # one of speech, which writes texts
        return
    beyond = [(number, token) for token, number in tokenizer.get_vocab().items() if number >= rows]
    if lacking := [(number, token) for number, token in sorted(beyond) if token != tokenizer.pad_token]:
        number, token = lacking[0]
        raise Refused(
            f"{model}'s tokenizer has {token!r} as token {number}, and its model embeddings of {rows} tokens alone; "
            "take the token out of the tokenizer's files, or give the model more with resize_token_embeddings and "
            "train them"
        )


def pad_of(tokenizer: Any, config: Any) -> int:
    """The model's own pad token, the tokenizer's, or any where neither has one that the model has an embedding of."""
    most = getattr(config, "vocab_size", inf)
    tokens = (config.pad_token_id, tokenizer.pad_token_id)
    return next((int(token) for token in tokens if token is not None and 0 <= token < most), 0)


def special_text(tokenizer: Any, config: Any) -> str:
    """The special tokens, without one for padding that the model has no embedding of."""
    most = getattr(config, "vocab_size", inf)
    tokens = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return " ".join(token for token, number in tokens if token != tokenizer.pad_token or number < most)
