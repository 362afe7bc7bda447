"""Payloads that no task foresees, through handler(job): text that is none, values of any depth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.bundle import Graph, open_bundle, write_manifest
from engine.config import Limits
from engine.tasks import load_task
from engine.tensors import TensorSpec
from tests.bundles import toy_tokenizer, write_small_bundle
from tests.served import Served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(write_small_bundle(tmp_path_factory.mktemp("bundle") / "small"))
    yield made
    made.close()


def deep(depth: int = 5000) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "payload",
    [
        {"text": "a \ud83d b"},
        {"texts": ["a", "b\ude42"]},
        {"text": "a", "\ud800": 1},
        {"text": "a", "prompt_name": "\ud800"},
        {"openai_route": "/v1/embeddings", "openai_input": {"input": ["\ud83d\ude42"]}},
        {"text": "a", "x": [1, 2.5, None, True, [3, {"y": [4, "\udc00"]}]]},
    ],
)
def test_half_a_surrogate_pair_is_the_callers_fault(served: Served, payload: Any):
    refusal = served.refusal(payload)
    assert refusal.startswith("invalid input: a string in `input` holds half a surrogate pair (\\ud")
    assert refusal.isascii()


def test_whole_characters_pass(served: Served):
    assert served.ask({"text": "\U0001f642 שלום e\u0301 \0 \uffff"})["dimensions"] == 8


@pytest.mark.parametrize("field", ["dimensions", "encoding_format", "prompt_name", "normalize", "text", "timings", "x"])
def test_values_may_be_nested_however_deep(served: Served, field: str):
    assert served.refusal({"text": "a", field: deep()}).startswith("invalid input: ")


def test_an_openai_request_nested_deeply(served: Served):
    for changes, sentence in (
        ({"openai_route": deep()}, "the path, or `openai_route`, must be /v1/embeddings or /v1/models, got [[["),
        ({"openai_input": {"input": "a", "model": deep()}}, "`model` must be a string, got a list"),
    ):
        payload = {"openai_route": "/v1/embeddings", "openai_input": {"input": "a"}, **changes}
        assert served.refusal(payload).startswith(f"invalid input: {sentence}")


@pytest.mark.parametrize(
    ("task", "output", "payload", "tokens"),
    [
        ("sparse-encoder", ("weights", 4), {"texts": ["", "the fox"]}, 2),
        ("sparse-encoder", ("weights", 4), {"text": " "}, 0),
        ("text-ranking", ("logits", 1), {"query": "the", "documents": ["", "fox"]}, 3),
        ("text-ranking", ("logits", 1), {"query": "", "documents": [""]}, 0),
        ("feature-extraction", ("embedding", 8), {"texts": ["", "the fox"]}, 2),
    ],
)
def test_a_text_without_a_token_is_billed_as_none(
    tmp_path: Path, task: str, output: tuple[str, int], payload: Any, tokens: int
):
    """Though its row has one, for the engine."""
    name, width = output
    inputs = tuple(TensorSpec(one, "int32", ("batch", "length")) for one in ("input_ids", "attention_mask"))
    graphs = {
        "model": Graph(inputs, (TensorSpec(name, "float32", ("batch", width)),), {"fp32": "graphs/model/fp32.onnx"})
    }
    config = {"max_length": 32, "dimension": 8, "normalize": True, "prompts": {}, "default_prompt": None}
    folder = write_small_bundle(tmp_path / "b", task=task, graphs=graphs, task_config={**config, "function": "none"})
    tokenizer = toy_tokenizer()
    tokenizer.post_processor = None
    tokenizer.save(str(folder / "tokenizer.json"))
    write_manifest(folder, open_bundle(folder).manifest)
    made = load_task(open_bundle(folder), Limits())
    request = made.parse(payload)
    rows = made.preprocess(request)
    assert all(row.length >= 1 for row in rows)
    reply = made.postprocess(request, [{name: np.ones(width, np.float32)} for _ in rows])
    assert reply["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
