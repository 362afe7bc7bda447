"""zero-shot-classification answers like transformers' pipeline."""

from __future__ import annotations

from typing import Any

import pytest

from engine.config import Settings
from export.__main__ import main
from tests.architectures import FEW_ARCHITECTURES
from tests.same import assert_same

TASK = "zero-shot-classification"
LABELS = ["urgent", "phone", "the old house", "机器学习"]
TEXTS = [
    "My name is Sarah and I live in London.",
    "机器学习 café שלום",
    "My brother Wolfgang works for Acme Corporation in Berlin, again and again. " * 20,
]


@pytest.mark.parametrize("architecture", FEW_ARCHITECTURES)
@pytest.mark.parametrize("multi_label", [False, True])
def test_labels_and_scores(zoo: Any, architecture: str, multi_label: bool):
    entry = zoo(TASK, architecture)
    options = {"candidate_labels": LABELS, "multi_label": multi_label}
    expected = entry.expect(TEXTS, **options)
    found = entry.served.ask({"texts": TEXTS, **options})
    assert_same(found, expected)
    assert_same(entry.served.ask_all([{"text": text, **options} for text in TEXTS]), found, 1e-5)


def test_options(zoo: Any):
    entry = zoo(TASK, "roberta")
    for options in (
        {"candidate_labels": "urgent, phone,,cooking ", "hypothesis_template": "It is about {}!"},
        {"candidate_labels": ["urgent", "{}"], "hypothesis_template": "{{urgent, {}}} is in {{}}}}."},
        {"candidate_labels": ["urgent"]},
        {"candidate_labels": "urgent"},
    ):
        assert_same(entry.served.ask({"text": TEXTS[0], **options}), entry.expect(TEXTS[0], **options))
    asked = {"text": TEXTS[0], "candidate_labels": "urgent"}
    open_options = {"hypothesis_template": None, "multi_label": None, "truncate": None}
    assert entry.served.ask({**asked, **open_options}) == entry.served.ask(asked)


def test_entailment_may_be_the_first_label(zoo: Any):
    names = {0: "ENTAILMENT", 1: "NEUTRAL", 2: "CONTRADICTION"}
    entry = zoo(TASK, "bert", id2label=names, label2id={name: at for at, name in names.items()})
    options = {"candidate_labels": LABELS, "multi_label": True}
    assert_same(entry.served.ask({"text": TEXTS[0], **options}), entry.expect(TEXTS[0], **options))


def test_a_model_without_entailment_is_refused(zoo: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]):
    folder = zoo("text-classification", "bert").folder
    assert main([str(folder), "--task", TASK, "--out", str(tmp_path / "bundle")]) == 2
    assert "has no label that begins with entail, only " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({"text": "a"}, "`candidate_labels` is missing"),
        (
            {"text": "a", "candidate_labels": []},
            f"`candidate_labels` must hold 1 to {Settings().max_items} strings, got 0",
        ),
        ({"text": "", "candidate_labels": ["b"]}, "`text` must not be empty"),
        (
            {"text": "a", "candidate_labels": ["b"], "hypothesis_template": "no place"},
            "`hypothesis_template` must hold {} once",
        ),
        *(
            (
                {"text": "a", "candidate_labels": ["b"], "hypothesis_template": template},
                "`hypothesis_template` must hold {} where the label goes, and any other brace twice",
            )
            for template in ("{} {", "} {}", "{} {a}", "{0}", "{:>999999999}", "{!r}", "{.__class__}", "{}{")
        ),
        (
            {"text": "a", "candidate_labels": ["b"], "hypothesis_template": "{{}}"},
            "`hypothesis_template` must hold {} once",
        ),
        (
            {"text": "a", "candidate_labels": ["b"], "hypothesis_template": "{}{}"},
            "`hypothesis_template` must hold {} once",
        ),
        ({"text": "a", "candidate_labels": ["b"], "multi_class": True}, "unknown field `multi_class`; known are"),
        (
            {"text": "a", "candidate_labels": ["a", "b " * 200]},
            "`candidate_labels[1]` in its `hypothesis_template` leaves no room for a text in the 128 tokens",
        ),
        (
            {"text": "a", "candidate_labels": ["b"], "hypothesis_template": "a " * 200 + "{}"},
            "`hypothesis_template` leaves no room for a text in the 128 tokens",
        ),
    ],
)
def test_refusals(zoo: Any, payload: Any, sentence: str):
    assert zoo(TASK, "bert").served.refusal(payload).startswith(f"invalid input: {sentence}")
