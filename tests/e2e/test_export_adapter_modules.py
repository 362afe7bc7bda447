"""Adapters of modules that share a weight with others, and those that bring a head of their own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.zoo.text import task_model
from engine.bundle import open_bundle
from export.__main__ import main
from export.errors import Refused
from export.load import load
from export.recipe import Recipe
from tests import models
from tests.models import edit_json, lora, write_json
from tests.served import Served


def with_decoder(folder: Path) -> Path:
    """A model that fills gaps by its embeddings, as BERT and its relatives do."""
    return task_model(folder, "fill-mask", "bert")


def changed(base: Path, adapters: Sequence[Path], as_reference: bool) -> Any:
    """The logits of the export's model with the adapters, merged or as the reference has them."""
    found = load(Recipe(str(base), "fill-mask", Path("bundle"), adapters=tuple(map(str, adapters))))
    return logits(found.load_model(as_reference), base)


def logits(model: Any, base: Path) -> Any:
    import torch
    import transformers

    tokens = transformers.AutoTokenizer.from_pretrained(base)("the quick [MASK] fox", return_tensors="pt")
    with torch.inference_mode():
        return model.eval()(**tokens).logits[0].numpy()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["word_embeddings", "query"]},
        {"target_modules": ["decoder", "query"]},
        {"target_modules": ["word_embeddings", "decoder"]},
        {"target_modules": ["query"], "modules_to_save": ["decoder"]},
        {"target_modules": ["query"], "layer_replication": [[0, 2], [1, 2]]},
    ],
)
def test_an_adapter_changes_no_other_module_of_the_same_weight(tmp_path: Path, options: dict[str, Any]):
    """What PEFT answers is what the gate compares with, too."""
    import peft
    import transformers

    base = with_decoder(tmp_path / "base")
    folder = lora(base, tmp_path / "lora", auto_class="AutoModelForMaskedLM", **options)
    plain = transformers.AutoModelForMaskedLM.from_pretrained(base)
    expected = logits(peft.PeftModel.from_pretrained(plain, str(folder)), base)
    for as_reference in (False, True):
        found = changed(base, [folder], as_reference)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_adapters_of_two_modules_of_one_weight(tmp_path: Path):
    """The first one, merged, leaves the second its own."""
    import peft
    import transformers

    base = with_decoder(tmp_path / "base")
    both = [
        lora(base, tmp_path / name, seed, "AutoModelForMaskedLM", target_modules=[name])
        for seed, name in enumerate(("word_embeddings", "decoder"))
    ]
    plain = transformers.AutoModelForMaskedLM.from_pretrained(base)
    model: Any = peft.PeftModel.from_pretrained(plain, str(both[0]), "first")
    model.load_adapter(str(both[1]), "second")
    model.base_model.set_adapter(["first", "second"])
    expected = logits(model, base)
    np.testing.assert_allclose(changed(base, both, False), expected, atol=1e-5 * np.abs(expected).max())


def test_the_gate_sees_what_merging_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    base = with_decoder(tmp_path / "base")
    folder = lora(base, tmp_path / "lora", auto_class="AutoModelForMaskedLM", target_modules=["word_embeddings"])
    argv = [str(base), "--adapter", str(folder), "--out", str(tmp_path / "bundle")]
    assert main(argv) == 0
    capsys.readouterr()
    monkeypatch.setattr("export.model_files.adapters._separate", lambda adapted: None)
    assert main([*argv[:-1], str(tmp_path / "other")]) == 1
    assert " answers differ from the reference (" in capsys.readouterr().err


def with_labels(base: Path, folder: Path, count: int) -> Path:
    """A copy of `base` whose config.json has `count` labels."""
    names = [f"label {number}" for number in range(count)]
    shutil.copytree(base, folder)
    edit_json(folder / "config.json", id2label=dict(enumerate(names)), label2id={v: k for k, v in enumerate(names)})
    return folder


@pytest.mark.parametrize(
    ("base", "head", "options"),
    [
        (models.tiny_bert, "classifier", {"task_type": "TOKEN_CLS"}),
        (models.tiny_bert, "classifier", {"modules_to_save": ["classifier"]}),
        (models.tiny_roberta, "classifier", {"task_type": "SEQ_CLS"}),
        (models.tiny_qwen3, "score", {"task_type": "SEQ_CLS", "target_modules": ["q_proj"]}),
    ],
)
def test_an_adapter_with_other_labels_than_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], base: Any, head: str, options: dict[str, Any]
):
    two = base(tmp_path / "two", sentence_transformers=False)
    if head == "score":
        edit_json(two / "config.json", pad_token_id=0)  # without which no decoder classifies a batch
    nine = with_labels(two, tmp_path / "nine", 9)
    is_of_texts = options.get("task_type") == "SEQ_CLS"
    auto_class = f"AutoModelFor{'Sequence' if is_of_texts else 'Token'}Classification"
    folder = lora(nine, tmp_path / "tagger", auto_class=auto_class, **options)
    task = "text-classification" if is_of_texts else "token-classification"
    argv = ["--adapter", str(folder), "--task", task, "--out", str(tmp_path / "bundle")]
    assert main([str(two), *argv]) == 2
    assert (
        f"the adapter tagger brings a {head} for 9 labels, and the model's config.json has 2; export a copy of the "
        "model whose config.json has the adapter's 9 labels as id2label and label2id\n"
    ) in capsys.readouterr().err
    assert main([str(nine), *argv]) == 0
    assert open_bundle(tmp_path / "bundle").manifest.task_config["labels"][8] == "label 8"


def test_a_base_with_a_head_for_other_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The advice holds for it: its own head gives way to the adapter's, and nothing else does."""
    import transformers

    base = models.tiny_bert(tmp_path / "base", sentence_transformers=False)
    four = with_labels(base, tmp_path / "four", 4)
    transformers.AutoModelForSequenceClassification.from_pretrained(four).save_pretrained(four)
    three = with_labels(base, tmp_path / "three", 3)
    folder = lora(three, tmp_path / "lora", auto_class="AutoModelForSequenceClassification", task_type="SEQ_CLS")
    argv = ["--adapter", str(folder), "--out", str(tmp_path / "bundle")]
    assert main([str(four), *argv]) == 2
    assert "brings a classifier for 3 labels, and the model's config.json has 4; export a copy" in (
        capsys.readouterr().err
    )
    shutil.copy(three / "config.json", four)
    assert main([str(four), *argv]) == 0
    assert len(open_bundle(tmp_path / "bundle").manifest.task_config["labels"]) == 3
    edit_json(four / "config.json", max_position_embeddings=9 + models.POSITIONS)
    capsys.readouterr()
    assert main([str(four), *argv[:-1], str(tmp_path / "other")]) == 2
    assert "lacks 1 weights of BertForSequenceClassification, bert.embeddings.position_embeddings.weight" in (
        capsys.readouterr().err
    )


def test_a_head_without_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = models.tiny_bert(tmp_path / "base", sentence_transformers=False)
    auto_class = "AutoModelForSequenceClassification"
    folder = lora(base, tmp_path / "lora", auto_class=auto_class, modules_to_save=["classifier"])
    argv = [str(base), "--adapter", str(folder), "--out", str(tmp_path / "bundle")]
    assert main(argv) == 2
    said = "the adapter lora brings a classifier, and BertModel has none; name the --task that it was trained for\n"
    assert capsys.readouterr().err == f"error: {said}"
    assert main([*argv, "--task", "text-classification"]) == 0


def test_a_reranker_of_a_base_with_two_labels(tmp_path: Path):
    """The advice is of labels, and no other task."""
    import peft
    from sentence_transformers import CrossEncoder

    base = models.tiny_roberta(tmp_path / "base", sentence_transformers=False)
    model = CrossEncoder(str(base), num_labels=1, device="cpu")
    options: dict[str, Any] = {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query"]}
    model.add_adapter(peft.LoraConfig(**options, modules_to_save=["classifier"]))
    model.save_pretrained(str(tmp_path / "lora"))
    asked = Recipe(str(base), None, tmp_path / "bundle", adapters=(str(tmp_path / "lora"),))
    with pytest.raises(Refused, match=r"for 1 label, and the model's config\.json has 2; export a copy of the model"):
        load(asked)
    edit_json(base / "config.json", id2label={"0": "score"}, label2id={"score": 0})
    assert main([str(base), "--adapter", str(tmp_path / "lora"), "--out", str(tmp_path / "bundle")]) == 0
    served = Served(tmp_path / "bundle")
    found = served.ask({"query": "who is it", "documents": ["the fox"]})["results"][0]["relevance_score"]
    served.close()
    np.testing.assert_allclose(found, model.predict([("who is it", "the fox")]), atol=1e-5)


def test_a_decoder_that_pads_with_no_token(tmp_path: Path):
    """What the adapter was trained with is told, and not taken for the model's."""
    base = models.tiny_qwen3(tmp_path / "base", sentence_transformers=False)
    edit_json(base / "config.json", pad_token_id=0)
    auto_class = "AutoModelForSequenceClassification"
    folder = lora(base, tmp_path / "lora", auto_class=auto_class, task_type="SEQ_CLS", target_modules=["q_proj"])
    edit_json(base / "config.json", pad_token_id=None)
    asked = Recipe(str(base), None, tmp_path / "bundle", adapters=(str(folder),))
    said = "base's config.json has no pad_token_id, by which a Qwen3ForSequenceClassification finds the last token of "
    fix = "a text; set it, in a copy of the model, to the id of the token that it was trained to pad with"
    with pytest.raises(Refused) as refused:
        load(asked)
    assert str(refused.value) == said + fix
    for token in ("</s>", {"content": "</s>"}):
        write_json(folder / "tokenizer_config.json", {"pad_token": token})
        with pytest.raises(Refused) as refused:
            load(asked)
        assert str(refused.value) == f"{said}{fix} (the adapter's tokenizer pads with </s>)"
    edit_json(base / "config.json", pad_token_id=0)
    assert load(asked).architecture == "Qwen3ForSequenceClassification"


def test_a_model_that_needs_no_token_to_pad_with(tmp_path: Path):
    base = models.tiny_bert(tmp_path / "base", sentence_transformers=False)
    edit_json(base / "config.json", pad_token_id=None)
    assert load(Recipe(str(base), "text-classification", tmp_path / "bundle")).config.pad_token_id is None
