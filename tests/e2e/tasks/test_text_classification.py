"""text-classification answers like transformers' pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo.decoders import SPECS
from benchmarks.zoo.text import ARCHITECTURES, HEADS, model_of
from engine.config import Settings
from export.__main__ import main
from export.tasks.base import ExportTask
from export.text import TextExport
from tests.models import edit_json, without_processor
from tests.same import assert_same
from tests.served import Served

TASK = "text-classification"
TEXTS = [
    "The best film of the year.",
    "it was great and then it was not",
    "机器学习 café שלום",
    "x",
    "My brother Wolfgang works for Acme Corporation in Berlin, again and again. " * 20,
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_labels_and_scores(zoo: Any, architecture: str):
    entry = zoo(TASK, architecture)
    expected = entry.expect(TEXTS, top_k=None, truncation=True)
    found = entry.served.ask({"texts": TEXTS, "top_k": None})
    assert_same(found, expected)
    assert_same(entry.served.ask_all([{"text": text, "top_k": None} for text in TEXTS]), found, 1e-5)
    # The answers tell texts apart.
    assert len({round(answer[0]["score"], 3) for answer in found}) > 2


def test_the_best_label_alone(zoo: Any):
    entry = zoo(TASK, "bert")
    for text in TEXTS:
        assert_same(entry.served.ask({"text": text}), entry.expect(text, truncation=True))
    assert_same(entry.served.ask({"inputs": TEXTS, "top_k": 2}), entry.expect(TEXTS, top_k=2, truncation=True))


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_the_function_can_be_chosen(zoo: Any, function: str):
    entry = zoo(TASK, "roberta")
    options = {"top_k": 3, "function_to_apply": function}
    assert_same(entry.served.ask({"texts": TEXTS, **options}), entry.expect(TEXTS, truncation=True, **options))


def without_segments(folder: Path) -> Path:
    """The tokenizer makes none, as DistilBERT's, though the model knows them: transformers then has zeros."""
    edit_json(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    return folder


def of_one_segment(folder: Path) -> Path:
    """A RoBERTa with BERT's tokenizer, which gives a second text a segment of its own; as klue/roberta-base."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 130}
    config = transformers.RobertaConfig(**sizes, **ids, type_vocab_size=1, initializer_range=0.5, num_labels=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.RobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def of_one_segment_unsaid(folder: Path) -> Path:
    return without_segments(of_one_segment(folder))


def test_pairs_that_the_model_has_no_segment_for(zoo: Any, monkeypatch: pytest.MonkeyPatch):
    """Texts alone are answered, and pairs where the tokenizer makes no segments."""
    entry = zoo(TASK, "bert", of_one_segment)
    assert_same(entry.served.ask({"texts": TEXTS, "top_k": None}), entry.expect(TEXTS, top_k=None, truncation=True))
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    with pytest.raises(IndexError):
        entry.expect(pair)
    assert entry.served.refusal(pair) == (
        "invalid input: `text_pair` is nothing that this model can read: it was trained on single texts, and knows no "
        "segment but the first; leave it out"
    )
    assert "`texts[1].text_pair` is nothing that this model" in entry.served.refusal({"texts": ["a", pair]})
    monkeypatch.delitem(entry.served.task.config, "pairs")  # as in bundles of older exports, which knew every segment
    assert entry.served.task.parse(pair).items == [(TEXTS[0], TEXTS[1])]


def test_pairs_of_which_no_segments_are_made(zoo: Any):
    entry = zoo(TASK, "bert", of_one_segment_unsaid)
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    assert_same(entry.served.ask(pair), entry.expect([pair], top_k=1)[0])


def test_a_decoder_whose_tokenizer_pads_with_another_token(tmp_path: Path):
    """The last token is the last that is not the model's own pad."""
    import transformers

    head, settings = HEADS[TASK]
    folder = model_of(tmp_path / "model", SPECS["qwen2"], head, **settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        edit_json(folder / name, pad_token=tokenizer.convert_ids_to_tokens(40))
    ids = [kind.from_pretrained(folder).pad_token_id for kind in (transformers.AutoConfig, transformers.AutoTokenizer)]
    assert ids == [0, 40]
    assert main([str(folder), "--task", TASK, "--out", str(tmp_path / "bundle")]) == 0
    served = Served(tmp_path / "bundle")
    pipeline = transformers.pipeline(TASK, model=str(folder), device="cpu")
    assert_same(served.ask({"texts": TEXTS, "top_k": None}), pipeline(TEXTS, top_k=None, truncation=True))
    served.close()


@pytest.mark.parametrize(
    ("architecture", "make"),
    [("bert", None), ("deberta-v2", None), ("roberta", None), ("bert", without_segments), ("bert", without_processor)],
)
def test_pairs(zoo: Any, architecture: str, make: Any):
    entry = zoo(TASK, architecture, make)
    pairs = [{"text": a, "text_pair": b} for a, b in zip(TEXTS, reversed(TEXTS), strict=True)]
    expected = entry.expect(pairs, top_k=None, truncation=True)
    assert_same(entry.served.ask({"texts": pairs, "top_k": None}), expected)
    assert_same(entry.served.ask({**pairs[0], "top_k": None}), expected[0])


def test_the_gate_compares_a_pair(
    zoo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Where the worker makes other segments than transformers, texts alone are answered alike."""
    monkeypatch.setattr(TextExport, "adapt", ExportTask.adapt)
    folder = zoo(TASK, "bert", without_segments).folder
    assert main([str(folder), "--task", TASK, "--out", str(tmp_path / "bundle")]) == 1
    said = capsys.readouterr().err
    assert {line.split()[0] for line in said.splitlines() if "fp32.onnx" in line} == {"pair"}, said


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("distilbert", {"problem_type": "multi_label_classification"}),
        ("albert", {"problem_type": "regression", "id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}),
        ("electra", {"id2label": {0: "only"}, "label2id": {"only": 0}}),
    ],
)
def test_other_heads(zoo: Any, architecture: str, config: dict[str, Any]):
    entry = zoo(TASK, architecture, **config)
    assert_same(entry.served.ask({"texts": TEXTS, "top_k": None}), entry.expect(TEXTS, top_k=None, truncation=True))


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({"texts": []}, f"`texts` must hold 1 to {Settings().max_items} items, got 0"),
        ({}, "`input` needs either `text` (a string) or `texts` (a list of them)"),
        ({"text": "a", "texts": ["b"]}, "`input` needs either `text` (a string) or `texts` (a list of them), not both"),
        ({"text": ["a"]}, "`text` must be a string, got a list, which goes into `texts`"),
        ({"texts": "a"}, "`texts` must be a list, got a string; one item goes into `text`"),
        ({"texts": ["a", 3]}, "`texts[1]` must be a string, got a number"),
        ({"text": "a", "topk": 3}, "unknown field `topk`; known are `function_to_apply`, `inputs`"),
        ({"text": "a", "top_k": 0}, "`top_k` must be a whole number from 1"),
        ({"text": "a", "function_to_apply": "tanh"}, "`function_to_apply` must be one of softmax, sigmoid, none"),
        ({"texts": ["a"], "text_pair": "b"}, "`text_pair` goes with `text`"),
        ({"text": {"text": "a"}, "text_pair": "b"}, "`text_pair` stands twice"),
        ({"text": "a", "text_pair": 0}, "`text_pair` must be a string, got a number"),
        ({"texts": ["a", {"text": "b", "text_pair": 0}]}, "`texts[1].text_pair` must be a string, got a number"),
        ({"texts": [{"text_pair": "b"}]}, "`texts[0].text` must be a string"),
        ({"texts": [{"text": "a", "pair": "b"}]}, "unknown field `pair`"),
        ({"text": "a " * 200, "truncate": False}, "text 0 has more than 128 tokens"),
    ],
)
def test_refusals(zoo: Any, payload: Any, sentence: str):
    assert zoo(TASK, "bert").served.refusal(payload).startswith(f"invalid input: {sentence}")
