"""A tokenizer as transformers 5 writes it makes the tokens that it made there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from export.recipe import Recipe
from export.tokenizer.fast import fast_tokenizer
from tests.models import tiny_bert, tiny_qwen3, write_json

_TEXT = "a quick test"


def tokens(folder: Path) -> tuple[Any, list[int]]:
    tokenizer = fast_tokenizer(folder, "m", Recipe(str(folder), "feature-extraction", Path("bundle")))
    return tokenizer, tokenizer(_TEXT)["input_ids"]


def in_newer_form(folder: Path, *dropped: str, **keys: Any) -> None:
    """Rewrite tokenizer_config.json as transformers 5.24 does."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for key in (*dropped, "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"):
        settings.pop(key, None)
    write_json(path, {**settings, "backend": "tokenizers", **keys})


@pytest.mark.parametrize("kind", ["Llama", "Gemma"])
@pytest.mark.parametrize("ends", [{"add_eos_token": True}, {"add_bos_token": False}, {}])
def test_the_tokens_at_the_ends_of_a_text(tmp_path: Path, kind: str, ends: dict[str, bool]):
    import transformers

    named = ["<unk>", "<s>", "</s>", "<bos>", "<eos>", "<pad>", "▁", *sorted(set(_TEXT) - {" "})]
    pieces = Tokenizer(models.BPE({piece: i for i, piece in enumerate(named)}, [], unk_token="<unk>"))
    made = getattr(transformers, f"{kind}TokenizerFast")(tokenizer_object=pieces, **ends)
    made.save_pretrained(tmp_path)
    expected = made(_TEXT)["input_ids"]
    assert tokens(tmp_path)[1] == expected
    in_newer_form(tmp_path, "add_bos_token", "add_eos_token", tokenizer_class=f"{kind}Tokenizer")
    assert tokens(tmp_path)[1] == expected
    plain = json.loads((tmp_path / "tokenizer.json").read_text())
    write_json(tmp_path / "tokenizer.json", {**plain, "post_processor": None})
    in_newer_form(tmp_path, add_bos_token=True, add_eos_token=True)  # keys that are there say it
    assert len(tokens(tmp_path)[1]) == len(_TEXT) + 2


def test_a_tokenizer_of_no_architecture(tmp_path: Path):
    """As transformers 5 calls PreTrainedTokenizerFast, with a list of further special tokens."""
    folder = tiny_qwen3(tmp_path / "model")
    older, expected = tokens(folder)
    in_newer_form(folder, tokenizer_class="TokenizersBackend", extra_special_tokens=["<|endoftext|>"])
    newer, found = tokens(folder)
    assert found == expected
    assert newer.additional_special_tokens == ["<|endoftext|>"]
    assert newer.backend_tokenizer.to_str() == older.backend_tokenizer.to_str()


def test_a_tokenizer_of_an_architecture(tmp_path: Path):
    folder = tiny_bert(tmp_path / "model")
    older, expected = tokens(folder)
    in_newer_form(folder, tokenizer_class="BertTokenizer", extra_special_tokens=[])
    newer, found = tokens(folder)
    assert (type(newer), found) == (type(older), expected)
