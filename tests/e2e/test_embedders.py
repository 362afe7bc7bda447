"""Families of embedders, in small: the bundle answers like sentence-transformers itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.models import ask
from benchmarks.zoo import decoders, encoders, text
from export.__main__ import main
from tests.models import HIDDEN, edit_json, write_json, write_sentence_files

IMAGE = "<image_soft_token>"
TEXTS = ["A quick test.", "", "The old house in Berlin, and the cat on the mat. " * 6, "机器学习 naïve café"]


def dense(folder: Path, *layers: tuple[int, str, bool]) -> Path:
    """Put layers between Pooling and Normalize: size, activation, whether there is a bias."""
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense

    modules = json.loads((folder / "modules.json").read_text())
    size, made = HIDDEN, []
    torch.manual_seed(0)
    for number, (out, activation, bias) in enumerate(layers, 2):
        layer = Dense(size, out, bias, getattr(torch.nn, activation)())
        (folder / f"{number}_Dense").mkdir()
        layer.save(str(folder / f"{number}_Dense"))
        made.append({"path": f"{number}_Dense", "type": "sentence_transformers.models.Dense"})
        size = out
    modules[2:2] = made
    write_json(folder / "modules.json", [{**one, "idx": at, "name": str(at)} for at, one in enumerate(modules)])
    return folder


def qwen3_embedding(folder: Path) -> Path:
    """The last token speaks for a text, and shorter ones are padded in front."""
    decoders.model(folder, "feature-extraction", "qwen3")
    write_sentence_files(folder, "lasttoken", prompts={"query": "Instruct: find it\nQuery:", "document": ""})
    edit_json(folder / "tokenizer_config.json", padding_side="left")
    return folder


def embedding_gemma(folder: Path) -> Path:
    """A decoder that looks both ways, inside of a window in most layers, and two layers behind the mean.

    Its tokenizer has a token for images, which its embeddings do not.
    """
    from transformers import AutoTokenizer

    decoders.model(folder, "feature-extraction", "embedding_gemma")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    tokenizer.save_pretrained(folder)
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    write_sentence_files(folder, "mean", max_length=96, prompts=prompts)
    return dense(folder, (2 * HIDDEN, "Identity", False), (HIDDEN, "Identity", False))


def labse(folder: Path) -> Path:
    text.task_model(folder, "feature-extraction", "bert")
    write_sentence_files(folder, "cls")
    return dense(folder, (24, "Tanh", True))


def sentence_t5(folder: Path) -> Path:
    """The encoder of an encoder with a decoder."""
    auto_class, settings = text.HEADS["feature-extraction"]
    text.model_of(folder, encoders.SPECS["t5-encoder"], auto_class, **settings)
    write_sentence_files(folder)
    return dense(folder, (24, "Identity", False))


def modernbert_embed(folder: Path) -> Path:
    text.task_model(folder, "feature-extraction", "modernbert")
    prompts = {"query": "search_query: ", "document": "search_document: "}
    write_sentence_files(folder, "mean", max_length=64, prompts=prompts)
    return folder


def sgpt(folder: Path) -> Path:
    """Later tokens of a decoder, which have seen more, count more."""
    decoders.model(folder, "feature-extraction", "gpt_neo")
    write_sentence_files(folder, "weightedmean")
    return folder


def deberta(folder: Path) -> Path:
    """Relative positions alone, and texts of more tokens than its config.json names."""
    text.task_model(folder, "feature-extraction", "deberta-v2", position_biased_input=False)
    write_sentence_files(folder, max_length=160)
    return folder


_NIGHTLY = [pytest.param(make, marks=pytest.mark.zoo) for make in (modernbert_embed, sgpt)]


@pytest.mark.parametrize("make", [qwen3_embedding, embedding_gemma, labse, sentence_t5, deberta, *_NIGHTLY])
def test_it_answers_like_sentence_transformers(make: Callable[[Path], Path], tmp_path: Path, capsys: Any):
    from sentence_transformers import SentenceTransformer

    model, out = make(tmp_path / "model"), tmp_path / "bundle"
    assert main([str(model), "--out", str(out)]) == 0
    taken_out = f"its tokenizer without {IMAGE}, which it has no embedding of"
    assert (taken_out in capsys.readouterr().out) == (make is embedding_gemma)
    assert np.isfinite(ask(out, {"texts": [f"an {IMAGE} here"]})["embeddings"]).all()  # an error of the library's
    theirs = SentenceTransformer(str(model), device="cpu")
    for name in (None, "query", "document"):
        options: dict[str, Any] = {} if name is None else {"prompt_name": name}
        expected = theirs.encode(TEXTS, **options)
        found = np.array(ask(out, {"texts": TEXTS, **options})["embeddings"])
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
