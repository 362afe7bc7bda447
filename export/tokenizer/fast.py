"""The tokenizer of a model's files, refused where a worker could not repeat it; and the file that the worker reads."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from export.command.said import needing
from export.errors import Refused, Unavailable
from export.recipe import Recipe
from export.source import Source
from export.tokenizer.esm import esm_tokenizer
from export.tokenizer.in_python import class_in_python, not_convertible
from export.tokenizer.newer import load_tokenizer

_WRITTEN = "a word, \u2603 and \U0001d518"  # with what a vocabulary may not hold
_VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.bpe", "merges.txt")


def fast_tokenizer(folder: Path, model: str, recipe: Recipe) -> Any:
    """The model's tokenizer in transformers, backed by the tokenizers library. Raises Refused."""
    try:
        with needing(model, "tokenizer that can be loaded"):
            tokenizer = load_tokenizer(
                folder, use_fast=True, trust_remote_code=recipe.trust_remote_code, local_files_only=True
            )
    except Refused as error:
        pieces = [] if (folder / "tokenizer.json").is_file() else sorted(folder.glob("*.model"))
        if pieces and find_spec("sentencepiece") is None:
            raise Unavailable(
                f"{model} has no tokenizer.json, and making it from {pieces[0].name} needs the package sentencepiece: "
                "pip install sentencepiece, or save the tokenizer with AutoTokenizer.from_pretrained(ID)."
                "save_pretrained(folder) where it is installed"
            ) from error
        if name := class_in_python(folder):  # whose own library may be what is missing
            raise not_convertible(model, folder, name) from error
        if any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
            raise
        raise Refused(  # transformers says that a path is None
            f"{model} has no tokenizer, neither tokenizer.json nor a vocabulary; save it into the model's folder with "
            "AutoTokenizer.from_pretrained(ID).save_pretrained(folder)"
        ) from None
    if not tokenizer.is_fast:
        slow = tokenizer
        tokenizer = esm_tokenizer(slow)
        if tokenizer is None:
            raise not_convertible(model, folder, type(slow).__name__)
    with needing(model, "tokenizer that can be used"):  # what its parts name of each other is not looked at before
        tokenizer([_WRITTEN, (_WRITTEN, _WRITTEN)])
    backend = tokenizer.backend_tokenizer
    for part in filter(None, (backend.normalizer, backend.pre_tokenizer, backend.post_processor, backend.decoder)):
        try:
            part.__getstate__()
        except Exception as error:  # a plain one: such as RoFormer's, which cuts Chinese with rjieba
            raise Refused(
                f"{model}'s {type(tokenizer).__name__} does part of its work in Python, which no tokenizer.json holds; "
                "choose a model whose tokenizer can be saved as one"
            ) from error
    if tokenizer.truncation_side != "right":
        raise Refused(f"{model} cuts long texts at the front (truncation_side), the worker only at the end")
    if getattr(tokenizer, "split_special_tokens", False):
        raise Refused(
            f"{model} reads special tokens that a text spells as plain text (split_special_tokens in "
            "tokenizer_config.json), which no tokenizer.json can say; set it to false there to have them read as tokens"
        )
    return tokenizer


def lowercase(backend: Any) -> None:
    """Put lowercasing where sentence-transformers does; Python's str.lower differs, e.g. in Greek final sigma."""
    from tokenizers import normalizers

    steps = backend.normalizer
    steps = list(steps) if isinstance(steps, normalizers.Sequence) else [steps] if steps else []
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def tokenizer_file(source: Source) -> str:
    """The tokenizer as transformers sets it up, without the truncation and padding that the worker chooses itself.

    Lowercasing, where a model's sentence-transformers files ask for it, is already among its normalizers.
    """
    from export.tokenizer.written import written

    return written(source.tokenizer.backend_tokenizer).to_str(pretty=True)
