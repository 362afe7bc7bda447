"""question-answering answers like transformers' pipeline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo.text import CASES
from handler.reply import encode
from tests.architectures import few
from tests.models import without_processor
from tests.same import assert_same

TASK = "question-answering"
ARCHITECTURES = few(case.architecture for case in CASES if case.task == TASK)
SHORT = "My name is Sarah and I live in London."
LONG = (
    "In 2019, 3.5 million people lived in Berlin. Paris is the capital of France, Madrid the capital of Spain. "
    "My brother Wolfgang works for Acme-Corporation, and the small cat sleeps on the mat in the old house. "
) * 5
PAIRS = [
    {"question": "Where do I live?", "context": SHORT},
    {"question": "What is the capital?", "context": LONG},
    {"question": "谁 café?", "context": "机器学习 café שלום naïve 🙂 x"},
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_best_answer(zoo: Any, architecture: str):
    entry = zoo(TASK, architecture)
    expected = [entry.expect(**pair) for pair in PAIRS]
    found = entry.served.ask({"inputs": PAIRS})
    assert_same(found, expected)
    assert_same(entry.served.ask_all(PAIRS), found, 1e-5)
    for pair, answer in zip(PAIRS, found, strict=True):
        assert pair["context"][answer["start"] : answer["end"]] == answer["answer"] != ""


def test_more_than_runpod_takes_is_refused(zoo: Any, monkeypatch: pytest.MonkeyPatch):
    """Item by item: after the one that is too much, no other is answered."""
    served = zoo(TASK, "bert").served
    asked = {"question": ["Who?"] * 10, "context": SHORT, "top_k": 20}
    size = len(encode({"output": served.ask(asked)}))
    monkeypatch.setattr("engine.tasks.payload.LARGEST_REPLY", size * 1.3)
    assert len(served.ask(asked)) == 10
    monkeypatch.setattr("engine.tasks.payload.LARGEST_REPLY", size * 0.35)
    answered = []

    def answer(item: Any, *others: Any) -> Any:
        answered.append(item)
        return type(served.task).answer(served.task, item, *others)

    monkeypatch.setattr(served.task, "answer", answer)
    with pytest.raises(AssertionError, match="invalid input: .* kB that RunPod takes; lower `top_k`"):
        served.ask(asked)
    assert 1 < len(answered) < 7


def test_a_tokenizer_without_special_tokens(zoo: Any):
    entry = zoo(TASK, "bert", without_processor)
    pairs = [PAIRS[0], PAIRS[2]]  # of a context's later windows the pipeline knows no places here
    assert_same(entry.served.ask({"inputs": pairs}), [entry.expect(**pair) for pair in pairs])
    for options in ({"top_k": 3}, {"top_k": 3, "handle_impossible_answer": True}):
        pair = {"question": "Where do I live?", "context": " ", **options}
        assert_same(entry.served.ask(pair), entry.expect(**pair))
    assert entry.served.ask({"question": "Where do I live?", "context": " "}) == []
    assert entry.served.ask({"question": " ", "context": " "}) == []
    none = {"score": 1.0, "start": 0, "end": 0, "answer": ""}
    assert entry.served.ask({"question": " ", "context": " ", "handle_impossible_answer": True}) == none


def of_one_segment(folder: Path) -> Path:
    """The template of the tokenizer then gives both texts the segment 0."""
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(re.sub(r'"type_id": *1', '"type_id": 0', text))
    return folder


def test_a_template_without_segments_is_that_of_every_window(zoo: Any):
    """Of the pipeline's later windows the context is of segment 1 all the same, unlike in the first one."""
    entry = zoo(TASK, "bert", of_one_segment)
    assert_same(entry.served.ask(PAIRS[0]), entry.expect(**PAIRS[0]))
    request = entry.served.task.parse({"question": "What is the capital?", "context": LONG, "max_seq_len": 64})
    rows = entry.served.task.preprocess(request)
    assert len(rows) > 1
    assert not any(row.feeds["token_type_ids"].any() for row in rows)


def test_a_context_without_a_token_has_no_answer(zoo: Any):
    assert zoo(TASK, "bert").served.ask({"question": "Where?", "context": " \n"}) == []


def test_a_special_token_in_the_question_is_no_answer(zoo: Any):
    """The pipeline takes the characters of the context that stand where it does in the question."""
    pair = {"question": "What does it mean, [CLS]?", "context": "x", "top_k": 9, "align_to_words": False}
    found = zoo(TASK, "bert").served.ask(pair)
    assert (found["start"], found["end"], found["answer"]) == (0, 1, "x")


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2"])
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 4},
        {"top_k": 4, "align_to_words": False},
        {"top_k": 3, "handle_impossible_answer": True},
        {"max_answer_len": 3},
        {"top_k": 5, "max_answer_len": 1},
        {"top_k": 2, "max_answer_len": 5000},
        {"max_seq_len": 40, "doc_stride": 10, "top_k": 2},
        {"max_seq_len": 64, "doc_stride": 0},
    ],
    ids=str,
)
def test_options(zoo: Any, architecture: str, options: dict[str, Any]):
    entry = zoo(TASK, architecture)
    for pair in PAIRS[:2]:
        assert_same(entry.served.ask({**pair, **options}), entry.expect(**pair, **options))


def drawn_to_cls(folder: Path) -> Path:
    """The model with a span head that looks for what [CLS] is like."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = model.bert(**tokenizer("Where?", SHORT, return_tensors="pt")).last_hidden_state[0, 0]
        model.qa_outputs.weight[:] = 12 * hidden / hidden.square().sum()
    out = folder.parent / "drawn"
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def test_no_answer_competes_by_its_own_probability(zoo: Any):
    entry = zoo(TASK, "bert", drawn_to_cls)
    for pair in PAIRS[:2]:
        options = {"handle_impossible_answer": True, "top_k": 40}
        found = entry.served.ask({**pair, **options})
        assert_same(found, entry.expect(**pair, **options))
        assert any(answer["answer"] == "" for answer in found)
        assert entry.served.ask(pair)["answer"] != ""


def test_forms_of_a_job(zoo: Any):
    entry = zoo(TASK, "bert")
    one, other = PAIRS[0], {"question": "Who am I?", "context": SHORT}
    answers = entry.served.ask_all([one, other])
    both = entry.served.ask({"question": [one["question"], other["question"]], "context": SHORT})
    assert_same(both, answers, 1e-5)
    both = entry.served.ask({"question": [one["question"], other["question"]], "context": [SHORT, SHORT]})
    assert_same(both, answers, 1e-5)
    assert_same(entry.served.ask({"inputs": one, "question": None, "context": None}), answers[0], 1e-5)
    assert_same(entry.served.ask({**one, "inputs": None}), answers[0], 1e-5)


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({"question": "a"}, "`input` needs `question` and `context`, or `inputs` with objects of both"),
        ({"question": "a", "context": ""}, "`context` must not be empty"),
        ({"question": ["a", "b", ""], "context": "c"}, "`question[2]` must not be empty"),
        ({"question": ["a", "b"], "context": ["c", 3]}, "`context[1]` must be a string, got a number"),
        ({"inputs": ["a"]}, "`inputs[0]` must be an object, got a string"),
        ({"inputs": [{"question": "a", "context": "b"}, {"question": "a"}]}, "`inputs[1].context` must be a string"),
        ({"inputs": None}, "`inputs` must be an object, got null"),
        ({"question": "a", "context": 3}, "`context` must be a string, got a number"),
        ({"question": ["a", "b"], "context": ["c"]}, "`question` holds 2 and `context` 1; they must go together"),
        (
            {"inputs": [{"question": "a", "context": "b", "id": 1}]},
            "unknown field `id`; known are `context`, `question` (in `i",
        ),
        ({"question": "a", "context": "b", "topk": 1}, "unknown field `topk`; known are `align_to_words`"),
        ({"question": "a", "context": "b", "top_k": 0}, "`top_k` must be a whole number from 1"),
        (
            {"question": "where " * 130, "context": SHORT},
            "`question` has 390 tokens, which leaves 0 of a window's 128 for the context, and windows overlap by 64; "
            "shorten it",
        ),
        (
            {"question": ["a", "where " * 20], "context": SHORT * 9, "max_seq_len": 99, "doc_stride": 50},
            "`question[1]` has 60 tokens, which leaves 36 of a window's 99 for the context, and windows overlap by 50; "
            "shorten it, or lower `doc_stride`, or raise `max_seq_len`",
        ),
        (
            {"question": "a", "context": SHORT, "max_answer_len": 0},
            "`max_answer_len` must be a whole number from 1 up, got 0",
        ),
    ],
)
def test_refusals(zoo: Any, payload: Any, sentence: str):
    assert zoo(TASK, "bert").served.refusal(payload).startswith(f"invalid input: {sentence}")
