"""What the tasks on texts refuse before anything is traced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.errors import Refused
from export.rare_tokens import rare_texts
from export.tasks import export_task
from export.text import sample_texts, texts
from tests import models


@pytest.mark.parametrize(
    "task", ["feature-extraction", "text-ranking", "zero-shot-classification", "question-answering"]
)
def test_attention_to_blocks_drawn_at_random_is_refused(task: str):
    labels = {"entailment": 0, "neutral": 1, "contradiction": 2}
    config = SimpleNamespace(attention_type="block_sparse", num_labels=1, label2id=labels, id2label={0: "entailment"})
    with pytest.raises(Refused, match="m attends to blocks .* set attention_type to original_full in its config.json"):
        export_task(task).check("m", config)
    config.attention_type = "original_full"
    export_task(task).check("m", config)


@pytest.mark.parametrize("name", ["is_causal", "use_bidirectional_attention"])
def test_attention_that_transformers_does_not_know_is_refused(name: str):
    asked = name != "is_causal"
    config = SimpleNamespace(model_type="qwen2", **{name: asked})
    with pytest.raises(Refused, match=f"has {name} (true|false), which transformers' qwen2 takes no notice of: its to"):
        export_task("feature-extraction").check("m", config)
    encoder, own_code = {"model_type": "bert"}, {"auto_map": {"AutoModel": "own.Model"}}
    for known in ({"model_type": "gemma3_text"} if asked else {name: True}, encoder, own_code):
        export_task("feature-extraction").check("m", SimpleNamespace(**{**vars(config), **known}))


@pytest.mark.parametrize("make", [models.tiny_bert, models.tiny_roberta])
def test_rare_texts_are_made_of_tokens_that_no_sample_holds(make: Callable[[Path], Path], tmp_path: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make(tmp_path / "model"))
    source: Any = SimpleNamespace(tokenizer=tokenizer, max_length=64, config=None)

    def tokens(text: str) -> list[int]:
        found: list[int] = source.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    samples = {token for text in sample_texts(source) for token in tokens(text)}
    rare = [text for label, text in texts(source, []) if label.startswith("rare tokens")]
    assert rare
    assert samples.isdisjoint({token for text in rare for token in tokens(f"o {text}")[1:]})
    assert rare == [text for label, text in texts(source, []) if label.startswith("rare tokens")]


def test_a_vocabulary_that_ordinary_texts_exhaust_has_no_rare_text(tmp_path: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.tiny_bert(tmp_path / "model"))
    assert list(rare_texts(tokenizer, [" ".join(tokenizer.get_vocab())])) == []


def test_the_gate_sees_punctuation_that_is_repeated_and_markup(tmp_path: Path):
    """What int8 answered worst on all-MiniLM-L6-v2 where it was chosen by words alone."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.tiny_bert(tmp_path / "model"))
    source: Any = SimpleNamespace(tokenizer=tokenizer, max_length=64, config=None)
    found = [text for _, text in texts(source, [])]
    assert {mark * 64 for mark in "!?\u2026"} < set(found)
    assert any(text.count("</p>") > 1 for text in found)
