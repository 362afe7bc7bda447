"""A tokenizer against the embeddings of its model: a token that has none ends in an error of the engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from inspect import getsource
from math import inf
from pathlib import Path
from typing import Any

from export.errors import Refused
from export.model_files.json_files import read_json

_UNPADDED = "if no padding token is defined"
"""In what every such head of transformers raises."""


def rows_of(model: Any, config: Any) -> int | None:
    """How many tokens `model` has embeddings of; None where that is not told."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # of two towers, or of the model's own code
        table = None
    of_texts = getattr(config, "text_config", config)
    rows = getattr(table, "num_embeddings", None) or getattr(of_texts, "vocab_size", None)
    return rows if isinstance(rows, int) else None


def check_tokens(model: str, tokenizer: Any, rows: int | None) -> list[str]:
    """Take the added tokens that the model has no embedding of out of `tokenizer`, in place; returns them.

    EmbeddingGemma has one for images. A text that holds one fails in PyTorch; without it, the text is read like any
    other. Raises Refused for a token that stays: of the vocabulary itself, at the ends of every text, or for a gap. The
    one that pads may stay: it is given to Llama and others without another embedding, and nothing need look it up, for
    the mask hides padding. What reads no texts passes.
    """
    if rows is None or not getattr(tokenizer, "is_fast", False):  # one of speech, which writes texts
        return []
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return []
    own = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    at_ends = {number for row in tokenizer(["", ("", "")])["input_ids"] for number in row}
    needed = {tokenizer.cls_token, tokenizer.mask_token}
    added = [token for token in beyond if token != tokenizer.pad_token]
    for token in sorted(beyond, key=lambda one: beyond[one]):
        if beyond[token] in at_ends or (token in added and (token in own or token in needed)):
            raise Refused(
                f"{model}'s tokenizer has {token!r} as token {beyond[token]}, and its model embeddings of {rows} "
                "tokens alone; take the token out of the tokenizer's files, or give the model more with "
                "resize_token_embeddings and train them"
            )
    if added:
        _take_out(tokenizer, set(added))
    return sorted(added, key=lambda one: beyond[one])


def check_last_token(model: str, empty: Any, config: Any, adapters: Sequence[Path]) -> None:
    """Raise Refused where the head of `empty` finds the last token by the one that pads, and `config` names none.

    transformers says so of a batch alone, and only when it runs. What an adapter was trained with is told, not taken.
    """
    if _UNPADDED not in getsource(type(empty).forward) or config.get_text_config().pad_token_id is not None:
        return
    named = [read_json(folder / "tokenizer_config.json").get("pad_token") for folder in adapters]
    tokens = [token.get("content") if isinstance(token, dict) else token for token in named if token]
    hint = f" (the adapter's tokenizer pads with {tokens[-1]})" if tokens else ""
    raise Refused(
        f"{model}'s config.json has no pad_token_id, by which a {type(empty).__name__} finds the last token of a text; "
        f"set it, in a copy of the model, to the id of the token that it was trained to pad with{hint}"
    )


def _take_out(tokenizer: Any, added: set[str]) -> None:
    """Make `tokenizer` anew without some of its added tokens, for the library adds only."""
    from tokenizers import Tokenizer

    held = json.loads(tokenizer.backend_tokenizer.to_str())
    held["added_tokens"] = [one for one in held["added_tokens"] if one["content"] not in added]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(held))


def without(taken_out: Sequence[str]) -> str:
    """What the load stage says of them."""
    more = f" and {len(taken_out) - 1} more" if len(taken_out) > 1 else ""
    return f"its tokenizer without {taken_out[0]}{more}, which it has no embedding of"


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
