"""Payloads that no task foresees, through handler(job): text that is none, values of any depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.bundles import write_small_bundle
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
        ({"openai_route": deep()}, "`openai_route` must be /v1/embeddings or /v1/models, got [[["),
        ({"openai_input": {"input": "a", "model": deep()}}, "`model` must be a string, got a list"),
    ):
        payload = {"openai_route": "/v1/embeddings", "openai_input": {"input": "a"}, **changes}
        assert served.refusal(payload).startswith(f"invalid input: {sentence}")
