"""Tokenizers that transformers has in Python alone: the worker runs the tokenizers library, so they need another."""

from __future__ import annotations

from pathlib import Path

from export.errors import Refused
from export.model_files.json_files import read_json


def class_in_python(folder: Path) -> str:
    """The class that a tokenizer's files name, where a tokenizer.json lies there that it does not read; else empty."""
    import transformers

    name = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    if not isinstance(name, str) or name.endswith("Fast") or not (folder / "tokenizer.json").is_file():
        return ""
    return name if hasattr(transformers, name) and not hasattr(transformers, f"{name}Fast") else ""


def not_convertible(model: str, folder: Path, name: str) -> Refused:
    """Why a model whose tokenizer is of the class `name` has no bundle."""
    if (folder / "tokenizer.json").is_file():  # such as SigLIP's, which drops punctuation in Python
        return Refused(
            f"{model}'s {name} runs in Python alone and takes no notice of its tokenizer.json; where that makes the "
            "same tokens, set tokenizer_class to PreTrainedTokenizerFast in tokenizer_config.json"
        )
    return Refused(
        f"{model} has no tokenizer.json, and its {name} cannot be converted into one; the worker needs that file"
    )
