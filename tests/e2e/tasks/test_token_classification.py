"""token-classification answers like transformers' pipeline: labels, words, places, scores."""

from __future__ import annotations

from typing import Any

import pytest

from engine.text.entities import STRATEGIES
from tests.architectures import FEW_ARCHITECTURES
from tests.same import assert_same

TASK = "token-classification"
TEXTS = [
    "My name is Sarah and I live in London.",
    "wolfgang  works for Acme-Corporation, in Berlin!",
    "机器学习 café שלום naïve 🙂 x",
    "In 2019, 3.5 million people lived in Berlin. Paris is the capital of France; Madrid, of Spain. " * 6,
]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("architecture", FEW_ARCHITECTURES)
def test_every_strategy(zoo: Any, architecture: str, strategy: str):
    entry = zoo(TASK, architecture)
    options = {"aggregation_strategy": strategy}
    expected = [entry.expect(text, **options) for text in TEXTS]
    found = entry.served.ask({"texts": TEXTS, **options})
    assert_same(found, expected)
    assert_same(entry.served.ask_all([{"text": text, **options} for text in TEXTS]), found, 1e-5)
    assert all(found)


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2"])
@pytest.mark.parametrize("stride", [0, 16])
def test_long_texts_in_windows(zoo: Any, architecture: str, strategy: str, stride: int):
    entry = zoo(TASK, architecture)
    options = {"aggregation_strategy": strategy, "stride": stride}
    expected = entry.expect(TEXTS[3], **options)
    found = entry.served.ask({"text": TEXTS[3], **options})
    assert_same(found, expected)
    assert found[-1]["end"] > len(TEXTS[3]) - 20


def test_labels_to_ignore(zoo: Any):
    entry = zoo(TASK, "bert")
    for labels in ([], ["O", "B-PER", "LOC"]):
        for strategy in ("none", "simple"):
            options = {"ignore_labels": labels, "aggregation_strategy": strategy}
            assert_same(entry.served.ask({"text": TEXTS[0], **options}), entry.expect(TEXTS[0], **options))
    assert entry.served.ask({"text": TEXTS[0], "ignore_labels": None}) == entry.served.ask({"text": TEXTS[0]})


def test_a_text_of_nothing_has_no_entities(zoo: Any):
    assert zoo(TASK, "bert").served.ask({"texts": ["", " "], "aggregation_strategy": "first"}) == [[], []]


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({"text": "a", "aggregation_strategy": "best"}, "`aggregation_strategy` must be one of none, simple, first"),
        ({"text": "a", "stride": 4}, "`stride` needs an `aggregation_strategy` other than none"),
        (
            {"text": "a", "stride": 128, "aggregation_strategy": "simple"},
            "`stride` must be a whole number from 0 to 127",
        ),
        (
            {"text": "a " * 300, "stride": 127, "aggregation_strategy": "simple"},
            "windows of 128 tokens, 2 of them taken, must be longer than their overlap of 127; lower `stride`",
        ),
        ({"text": "a", "ignore_labels": "O"}, "`ignore_labels` must be a list of strings, got a string"),
        ({"text": "a", "ignore_labels": ["O", 5]}, "`ignore_labels[1]` must be a string, got a number"),
        ({"text": "a " * 300, "truncate": False}, "text 0 has more than 128 tokens"),
    ],
)
def test_refusals(zoo: Any, payload: Any, sentence: str):
    assert zoo(TASK, "bert").served.refusal(payload).startswith(f"invalid input: {sentence}")
