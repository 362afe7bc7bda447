"""The tokenizers library's tokenizer as a file that finds added tokens where the one in memory does."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from tokenizers import Tokenizer

from export.errors import Refused

_FULL_WIDTH = {code: code + 0xFEE0 for code in range(ord("!"), ord("~") + 1)}  # in which NFKC sees no difference
_UNHEARD_OF = "\ue000"  # for private use


def written(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer`, which then neither cuts nor pads, as it is once it is written and read again.

    A special token that is added twice, by tokenizer.json and by tokenizer_config.json, is looked for as the first one
    says, in the text as it stands or as it is normalized, but the library writes what the second one says. One with a
    capital that was added before lowercasing is never found, and would be once it is read again. Raises Refused where a
    token as it is written is still read otherwise.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found = Tokenizer.from_str(tokenizer.to_str())
    if found.normalizer is None:
        return found
    numbers = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    expected = _probed(tokenizer, numbers)

    def unlike() -> list[str]:
        return [content for content, ids in _probed(found, numbers).items() if ids != expected[content]]

    never = [one for one in unlike() if not any(numbers[one] in ids for ids in expected[one])]
    if never:
        found = _without(found, never)
    for _ in range(2):  # the second one takes back what was another token's fault
        if not (others := unlike()):
            return found
        state = json.loads(found.to_str())
        for token in state["added_tokens"]:
            token["normalized"] ^= token["content"] in others
        found = Tokenizer.from_str(json.dumps(state))
    last = _probed(found, numbers)
    if others := [content for content, ids in last.items() if ids[0] != expected[content][0]]:
        raise Refused(
            f"the tokenizer finds {others[0]!r}, which was added to it, in other places than a tokenizer.json can say; "
            "take the token out of the tokenizer's files"
        )
    return found


def _without(tokenizer: Tokenizer, tokens: Collection[str]) -> Tokenizer:
    """`tokenizer`, which then finds none of `tokens`; what nobody writes has their numbers, lest others move."""
    state = json.loads(tokenizer.to_str())
    own = tokenizer.get_vocab(with_added_tokens=False)
    state["added_tokens"] = [
        {**one, "content": f"{_UNHEARD_OF}{one['id']}{_UNHEARD_OF}"} if one["content"] in tokens else one
        for one in state["added_tokens"]
        if one["content"] not in tokens or one["content"] not in own
    ]
    return Tokenizer.from_str(json.dumps(state))


def _probed(tokenizer: Tokenizer, contents: Collection[str]) -> dict[str, Any]:
    """The ids of texts that hold each added token, as it is written and as a normalizer may make it."""
    texts = [
        f"a {variant} a{variant}a"
        for one in contents
        for variant in (one, one.lower(), one.upper(), one.translate(_FULL_WIDTH))
    ]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    count = len(texts) // max(1, len(contents))
    return {one: ids[at * count : (at + 1) * count] for at, one in enumerate(contents)}
