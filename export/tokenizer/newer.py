"""A tokenizer as transformers 5 writes it, for the transformers 4 that is pinned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.model_files.json_files import read_json

_SET_ANEW = {"CohereTokenizerFast", "GemmaTokenizerFast", "LlamaTokenizerFast"}
_ENDS = {"add_bos_token", "add_eos_token"}


def load_tokenizer(folder: Path, **options: Any) -> Any:
    """What AutoTokenizer makes of `folder`, and what it would make there of files that transformers 5 wrote.

    Of these tokenizer.json alone has the tokens at the ends of a text, where older classes set them anew from keys of
    tokenizer_config.json that are no longer written.
    """
    import tokenizers
    import transformers

    settings: Mapping[str, Any] = read_json(folder / "tokenizer_config.json")
    file, kind = folder / "tokenizer.json", transformers.AutoTokenizer
    is_newer = settings.get("backend") == "tokenizers" and "auto_map" not in settings and file.is_file()
    if is_newer and isinstance(extra := settings.get("extra_special_tokens"), list):  # older: an object of names
        options |= {"extra_special_tokens": {}, "additional_special_tokens": extra}
    if is_newer and settings.get("tokenizer_class") == "TokenizersBackend":
        kind = transformers.PreTrainedTokenizerFast
        del options["trust_remote_code"]
    tokenizer = kind.from_pretrained(folder, **options)
    if is_newer and type(tokenizer).__name__ in _SET_ANEW and not _ENDS & settings.keys():
        tokenizer.backend_tokenizer.post_processor = tokenizers.Tokenizer.from_file(str(file)).post_processor
    return tokenizer
