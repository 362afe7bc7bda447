"""ESM's tokenizer, of residues, which transformers has in Python alone, as the tokenizers library runs it."""

from __future__ import annotations

import re
from typing import Any

_SEEN = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "M <mask> K<mask>T", "<cls>XBUZO.-<eos>", "acd 12M34 K\n", "", " M\tK ")
"""Texts that both have to agree on."""


def esm_tokenizer(slow: Any) -> Any | None:
    """A fast tokenizer that does what `slow` does; None for one that is not ESM's, or where they do not agree."""
    if type(slow).__name__ != "EsmTokenizer":
        return None
    from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary: dict[str, int] = slow.get_vocab()
    made = Tokenizer(WordLevel(vocabulary, unk_token=slow.unk_token))
    tokens = "|".join(re.escape(token) for token in sorted(vocabulary, key=len, reverse=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(tokens), "isolated"), pre_tokenizers.WhitespaceSplit()]
    )
    first, last = slow.cls_token, slow.eos_token
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:0 {last}:0",
        special_tokens=[(first, slow.cls_token_id), (last, slow.eos_token_id)],
    )
    special = {name: getattr(slow, name) for name in ("unk_token", "cls_token", "pad_token", "mask_token", "eos_token")}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=slow.model_max_length,
        model_input_names=slow.model_input_names,
        padding_side=slow.padding_side,
        truncation_side=slow.truncation_side,
        clean_up_tokenization_spaces=slow.clean_up_tokenization_spaces,
        **special,
    )
    agree = all(slow(text)["input_ids"] == fast(text)["input_ids"] for text in _SEEN)
    return fast if agree and slow(*_SEEN[:2])["input_ids"] == fast(*_SEEN[:2])["input_ids"] else None
