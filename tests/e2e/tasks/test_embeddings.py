"""Dense and sparse embeddings and similarities, like sentence-transformers makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.architectures import FEW_ARCHITECTURES
from tests.models import edit_json
from tests.same import assert_same

TEXTS = [
    "My name is Sarah and I live in London.",
    "机器学习 café שלום",
    "x",
    "My brother Wolfgang works for Acme Corporation in Berlin, again and again. " * 20,
]


def dense(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def sparse(folder: Path) -> Any:
    from sentence_transformers import SparseEncoder

    return SparseEncoder(str(folder), device="cpu")


@pytest.mark.parametrize("architecture", FEW_ARCHITECTURES)
def test_similarities_and_embeddings(zoo: Any, architecture: str):
    served = zoo("sentence-similarity", architecture).served
    model = dense(zoo("sentence-similarity", architecture).folder)
    vectors = model.encode(TEXTS)
    expected = model.similarity(vectors[:1], vectors[1:])[0].tolist()
    reply = served.ask({"source_sentence": TEXTS[0], "sentences": TEXTS[1:]})
    assert_same(reply["similarities"], expected)
    assert_same(served.ask({"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}}), reply, 1e-6)
    alone = [served.ask({"source": TEXTS[0], "sentences": [one]})["similarities"][0] for one in TEXTS[1:]]
    assert_same(alone, reply["similarities"], 1e-5)
    # The same bundle makes embeddings, as feature-extraction does.
    np.testing.assert_allclose(served.ask({"texts": TEXTS})["embeddings"], vectors, atol=1e-4)


def test_dense_embeddings(zoo: Any):
    """Of one architecture: sentence-similarity's graph, above, is the same."""
    entry = zoo("feature-extraction", "bert")
    found = entry.served.ask({"texts": TEXTS})["embeddings"]
    np.testing.assert_allclose(found, dense(entry.folder).encode(TEXTS), atol=1e-4)
    alone = [reply["embedding"] for reply in entry.served.ask_all([{"text": text} for text in TEXTS])]
    np.testing.assert_allclose(alone, found, atol=1e-5)


def decoded(model: Any, texts: list[str], **options: Any) -> list[dict[str, float]]:
    """Token -> weight in the model's own words."""
    return [dict(pairs) for pairs in model.decode(model.encode(texts, **options))]


def assert_same_weights(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """A token whose weight is next to nothing may be missing on either side."""
    for ours, theirs in zip(found, expected, strict=True):
        both = {**dict.fromkeys(ours, 0.0), **dict.fromkeys(theirs, 0.0)}
        assert_same({**both, **ours}, {**both, **theirs})


@pytest.mark.parametrize("architecture", FEW_ARCHITECTURES)
def test_sparse_embeddings(zoo: Any, architecture: str):
    entry = zoo("sparse-encoder", architecture)
    expected = decoded(sparse(entry.folder), TEXTS)
    reply = entry.served.ask({"texts": TEXTS})
    assert_same_weights(reply["embeddings"], expected)
    for found in reply["embeddings"]:
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert len(found) > 10
    alone = [reply["embedding"] for reply in entry.served.ask_all([{"text": text} for text in TEXTS])]
    assert_same_weights(alone, reply["embeddings"])


def splade(folder: Path, **pooling: Any) -> Path:
    """As sentence-transformers saves it, with prompts, for texts in lower case."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    out = folder.parent / "saved"
    modules = [Transformer(str(folder), transformer_task="fill-mask"), SpladePooling(**pooling)]
    SparseEncoder(modules=modules, device="cpu", prompts={"query": "find: ", "document": ""}).save(str(out))
    edit_json(out / "sentence_bert_config.json", max_seq_length=24, do_lower_case=True)
    return out


def summed(folder: Path) -> Path:
    return splade(folder, pooling_strategy="sum", activation_function="log1p_relu")


@pytest.mark.parametrize("make", [splade, summed])
def test_what_a_sparse_models_files_say(zoo: Any, make: Any):
    entry = zoo("sparse-encoder", "distilbert", make)
    model = sparse(entry.folder)
    assert_same_weights(entry.served.ask({"texts": TEXTS})["embeddings"], decoded(model, TEXTS))
    asked = entry.served.ask({"texts": TEXTS, "prompt_name": "query"})["embeddings"]
    assert_same_weights(asked, decoded(model, TEXTS, prompt_name="query"))


def test_forms_of_a_sparse_embedding(zoo: Any):
    entry = zoo("sparse-encoder", "bert")
    whole = entry.served.ask({"text": TEXTS[0]})["embedding"]
    best = entry.served.ask({"text": TEXTS[0], "top_k": 5})["embedding"]
    assert list(best.items()) == list(whole.items())[:5]
    found = entry.served.ask({"text": TEXTS[0], "format": "indices"})["embedding"]
    tokenizer = entry.served.task.tokens.tokenizer
    assert [tokenizer.id_to_token(index) for index in found["indices"]] == list(whole)
    assert_same(found["values"], list(whole.values()), 1e-6)


@pytest.mark.parametrize(
    ("task", "payload", "sentence"),
    [
        ("sparse-encoder", {"text": "a", "prompt_name": "x"}, "`prompt_name` must be one of: document, query; got x"),
        ("sparse-encoder", {"text": "a", "format": "dense"}, "`format` must be one of tokens, indices"),
        ("sparse-encoder", {"text": "a", "dimensions": 3}, "unknown field `dimensions`; known are"),
        ("sentence-similarity", {"source": "a"}, "`input` needs `source_sentence` (a string) and `sentences`"),
        ("sentence-similarity", {"source": "a", "sentences": ["b"], "x": 1}, "unknown field `x`; known are"),
        ("sentence-similarity", {"text": "a", "x": 1}, "unknown field `x`; known are `dimensions`"),
        *(
            ("sentence-similarity", {**payload, "truncate": False}, f"{name} has more than 128 tokens")
            for payload, name in (
                ({"source_sentence": "a", "sentences": ["b", "c " * 200]}, "`sentences[1]`"),
                ({"source": "a " * 200, "sentences": ["b"]}, "`source`"),
                ({"texts": ["a", "b " * 200]}, "text 1"),
            )
        ),
        (
            "sparse-encoder",
            {"openai_route": "/v1/embeddings", "openai_input": {"input": "a"}},
            "this worker's task has no answer to /v1/embeddings, and of such routes to /v1/models alone; send a job, "
            "to /runsync, whose `input` has fields of",
        ),
    ],
)
def test_refusals(zoo: Any, task: str, payload: Any, sentence: str):
    assert zoo(task, "bert").served.refusal(payload).startswith(f"invalid input: {sentence}")
