"""The tokenizers library's tokenizer as a file that finds added tokens where the one in memory does."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

_FULL_WIDTH = {code: code + 0xFEE0 for code in range(ord("!"), ord("~") + 1)}  # in which NFKC sees no difference


def written(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer`, which then neither cuts nor pads, as it is once it is written and read again.

    A special token that is added twice, by tokenizer.json and by tokenizer_config.json, is looked for as the first one
    says, in the text as it stands or as it is normalized, but the library writes what the second one says.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found = Tokenizer.from_str(tokenizer.to_str())
    if found.normalizer is None:
        return found
    expected = _probed(tokenizer)
    for _ in range(2):  # the second one takes back what was another token's fault
        unlike = [content for content, ids in _probed(found).items() if ids != expected[content]]
        if not unlike:
            break
        state = json.loads(found.to_str())
        for token in state["added_tokens"]:
            token["normalized"] ^= token["content"] in unlike
        found = Tokenizer.from_str(json.dumps(state))
    return found


def _probed(tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids of texts that hold each added token, as it is written and as a normalizer may make it."""
    contents = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    texts = [
        f"a {variant} a{variant}a"
        for one in contents
        for variant in (one, one.lower(), one.upper(), one.translate(_FULL_WIDTH))
    ]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    count = len(texts) // max(1, len(contents))
    return {one: ids[at * count : (at + 1) * count] for at, one in enumerate(contents)}
