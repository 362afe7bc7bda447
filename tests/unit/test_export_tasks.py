"""What the export knows about tasks: which there are, which one a model is for, how answers are measured."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import arguments
from engine.tasks import TASKS, task_class
from export import recipe
from export.__main__ import main
from export.errors import Refused
from export.gate.measures import Measure, agreement, compare_vectors, cosine, relative_difference, score_difference
from export.infer import infer_task
from export.load import load
from export.model_files import adapters
from export.recipe import TASK_OPTIONS, Recipe, command_from_argv
from export.tasks import TAGS, export_task
from export.tasks.feature_extraction import FeatureExtractionExport
from tests.models import write_json, write_sentence_files


def test_every_tag_has_both_sides():
    assert set(TAGS) <= set(TASKS)
    for tag in TAGS:
        task = export_task(tag)
        assert task.tag == tag
        assert task.online is task_class(tag)
        assert bool(task.measures) == task.has_model
        assert set(task.options) <= set(TASK_OPTIONS)
        assert task.online.summary.endswith(".")
        assert task.online.examples


def test_the_table_of_tasks(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as done:
        command_from_argv(["--list-tasks"])
    assert done.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["task", "model", "class", "what", "it", "does"]
    assert [line.split()[0] for line in lines[1:]] == list(TAGS)


def test_a_folder_that_was_removed_under_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["owner/model", "--out", "b"]) == 2
    assert "the folder that this runs in was removed; change to one that is there" in capsys.readouterr().err


def test_the_tasks_as_json(capfd: pytest.CaptureFixture[str]):
    assert main(["--json", "--list-tasks"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["status"], found["exit_code"]) == ("listed", 0)
    assert [one["task"] for one in found["tasks"]] == list(TAGS)
    assert found["tasks"][0].keys() == {"task", "model_class", "summary"}


@pytest.mark.parametrize(
    ("architecture", "tag"),
    [
        ("BertModel", "feature-extraction"),
        ("RobertaForSequenceClassification", "text-classification"),
        ("DebertaV2ForTokenClassification", "token-classification"),
        ("ElectraForQuestionAnswering", "question-answering"),
        ("ModernBertForMaskedLM", "fill-mask"),
        ("OpenAIGPTModel", "feature-extraction"),
        ("XLMWithLMHeadModel", "feature-extraction"),
    ],
)
def test_the_class_of_a_model_says_what_it_is_for(tmp_path: Path, architecture: str, tag: str):
    write_json(tmp_path / "config.json", {"architectures": [architecture]})
    assert infer_task(tmp_path, "m") == tag


def test_files_of_sentence_transformers_say_more(tmp_path: Path):
    masked, classifier = {"architectures": ["BertForMaskedLM"]}, {"architectures": ["BertForSequenceClassification"]}
    write_json(tmp_path / "embeds/config.json", masked)
    write_sentence_files(tmp_path / "embeds")
    assert infer_task(tmp_path / "embeds", "m") == "feature-extraction"
    write_json(tmp_path / "old/config.json", {**classifier, "sbert_ce_default_activation_function": "Identity"})
    assert infer_task(tmp_path / "old", "m") == "text-ranking"
    write_json(tmp_path / "new/config.json", classifier)
    write_json(tmp_path / "new/config_sentence_transformers.json", {"model_type": "CrossEncoder"})
    assert infer_task(tmp_path / "new", "m") == "text-ranking"
    several: Any
    for several in ({"id2label": {"0": "contradiction", "1": "entailment", "2": "neutral"}}, {"num_labels": 3}):
        for name in ("old", "new"):
            held = json.loads((tmp_path / name / "config.json").read_text())
            one = {"id2label": {"0": "LABEL_0"}, "num_labels": 1}
            write_json(tmp_path / name / "config.json", {**held, **one})
            assert infer_task(tmp_path / name, "m") == "text-ranking"
            write_json(tmp_path / name / "config.json", {**held, **several})
            assert infer_task(tmp_path / name, "m") == "text-classification"
            write_json(tmp_path / name / "config.json", held)
    for kind, tag in (("StaticEmbedding", "feature-extraction"), ("CLIPModel", "image-text-embedding")):
        write_json(tmp_path / kind / "modules.json", [{"path": "", "type": f"sentence_transformers.models.{kind}"}])
        assert infer_task(tmp_path / kind, "m") == tag
    write_json(tmp_path / "splade/config.json", masked)
    kinds = ["MLMTransformer", "SpladePooling"]
    write_json(tmp_path / "splade/modules.json", [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds])
    assert infer_task(tmp_path / "splade", "m") == "sparse-encoder"


@pytest.mark.parametrize("says_so", [False, True])
def test_a_task_that_is_built_on_another_takes_its_models_where_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says_so: bool
):
    class Acme(FeatureExtractionExport):
        tag = "acme-embedding"  # before feature-extraction in the alphabet

    class Claiming(Acme):
        heads = FeatureExtractionExport.heads
        claims = FeatureExtractionExport.claims

    acme = Claiming() if says_so else Acme()
    monkeypatch.setattr("export.infer.TAGS", (acme.tag, *TAGS))
    monkeypatch.setattr("export.infer.export_task", lambda tag: acme if tag == acme.tag else export_task(tag))
    write_json(tmp_path / "plain/config.json", {"architectures": ["BertModel"]})
    write_json(tmp_path / "embeds/config.json", {"architectures": ["BertModel"]})
    write_sentence_files(tmp_path / "embeds")
    assert infer_task(tmp_path / "embeds", "m") == (acme.tag if says_so else "feature-extraction")
    if says_so:
        with pytest.raises(Refused, match="its class BertModel fits acme-embedding, feature-extraction"):
            infer_task(tmp_path / "plain", "m")
    else:
        assert infer_task(tmp_path / "plain", "m") == "feature-extraction"


@pytest.mark.parametrize(
    ("architectures", "tag"),
    [
        (None, "zero-shot-image-classification"),
        (["CLIPModel"], "zero-shot-image-classification"),
        (["SiglipForImageClassification"], "image-classification"),
        (["CLIPForImageClassification"], "image-classification"),
    ],
)
def test_the_class_of_a_model_on_images_and_texts_says_which_head_it_has(tmp_path: Path, architectures: Any, tag: str):
    write_json(tmp_path / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"})
    write_json(tmp_path / "config.json", {"architectures": architectures, "text_config": {}, "vision_config": {}})
    assert infer_task(tmp_path, "m") == tag


@pytest.mark.parametrize(
    ("architecture", "part", "settings", "tag"),
    [
        ("CLIPModel", "image_processor", {"image_processor_type": "CLIPImageProcessorFast"}, "zero-shot-image-classif"),
        ("Dinov2Model", "image_processor", {"image_mean": [0.5, 0.5, 0.5]}, "image-feature-extraction"),
        ("HubertForSequenceClassification", "feature_extractor", {"sampling_rate": 16000}, "audio-classification"),
        ("BertModel", "feature_extractor", None, "feature-extraction"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_the_settings_of_a_processor_say_what_a_model_reads(
    tmp_path: Path, architecture: str, part: str, settings: Any, tag: str, nested: bool
):
    """In a file of their own, or as transformers 5 writes those of several parts."""
    both: Any = {"text_config": {}, "vision_config": {}} if architecture == "CLIPModel" else {}
    write_json(tmp_path / "config.json", {"architectures": [architecture], **both})
    file = {"processor_config.json": {part: settings}} if nested else {"preprocessor_config.json": settings or {}}
    for name, content in file.items():
        write_json(tmp_path / name, content)
    assert infer_task(tmp_path, "m").startswith(tag)


@pytest.mark.parametrize(
    ("name", "both"),
    [("BlipForConditionalGeneration", {"text_config": {}, "vision_config": {}}), ("VisionEncoderDecoderModel", {})],
)
def test_a_model_on_images_that_writes_texts(tmp_path: Path, name: str, both: dict[str, Any]):
    write_json(tmp_path / "preprocessor_config.json", {"image_processor_type": "ViTImageProcessor"})
    write_json(tmp_path / "config.json", {"architectures": [name], **both})
    with pytest.raises(Refused, match=f"m is a {name}, which generates text, and no task here does that; choose a"):
        infer_task(tmp_path, "m")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "m does not say what it is for (it names no class); name it with --task, one of "),
        (
            {"architectures": ["LlamaForCausalLM"]},
            "task here does that; --task feature-extraction makes embeddings of it",
        ),
        (
            {"architectures": ["T5ForConditionalGeneration"]},
            "m is a T5ForConditionalGeneration, which generates text, and no task here does that; choose another model",
        ),
        (
            {"architectures": ["T5ForConditionalGeneration"], "model_type": "mt5"},
            "no task here does that; --task feature-extraction makes embeddings of it",
        ),
        *(
            (
                {"architectures": [name]},
                f"m is a {name}, which generates text, and no task here does that; --task feature-extraction makes emb",
            )
            for name in ("GPT2LMHeadModel", "XLNetLMHeadModel", "BertLMHeadModel", "GPT2DoubleHeadsModel")
        ),
        ({"architectures": ["BertForPreTraining"]}, "its class BertForPreTraining fits none"),
        ({"architectures": ["BertForMaskedLM", "BertForTokenClassification"]}, "fits fill-mask, token-classification"),
    ],
)
def test_a_model_that_does_not_say(tmp_path: Path, config: Any, sentence: str):
    write_json(tmp_path / "config.json", config)
    with pytest.raises(Refused) as refused:
        infer_task(tmp_path, "m")
    assert sentence in str(refused.value)


def test_a_sparse_encoder_of_two_ways_is_told_from_a_model_that_fills_gaps(tmp_path: Path):
    """As OpenSearch's, whose queries are looked up and not computed."""
    write_json(tmp_path / "config.json", {"architectures": ["BertForMaskedLM"], "model_type": "bert"})
    write_json(tmp_path / "config_sentence_transformers.json", {"model_type": "SparseEncoder"})
    write_json(tmp_path / "modules.json", [{"path": "", "type": "sentence_transformers.models.Router"}])
    assert infer_task(tmp_path, "m") == "sparse-encoder"
    with pytest.raises(Refused, match=r"modules\.json lists Router: queries and documents go different ways, of which"):
        export_task("sparse-encoder").layout(tmp_path, Recipe(str(tmp_path), None, tmp_path / "out"))


def test_an_option_of_another_task_is_refused(tmp_path: Path):
    write_json(tmp_path / "config.json", {"architectures": ["BertForMaskedLM"], "model_type": "bert"})
    with pytest.raises(Refused, match="--pooling means nothing to fill-mask; leave it out"):
        load(Recipe(str(tmp_path), "fill-mask", tmp_path / "out", pooling="cls"))


def test_measures():
    a, b = np.array([3.0, 4.0], np.float32), np.array([3.0, 4.5], np.float32)
    assert cosine(a, 2 * a) == pytest.approx(1)
    assert relative_difference(a, b) == pytest.approx(0.1)
    assert score_difference(a / 10, b / 10) == pytest.approx(0.05)
    assert score_difference(a, b) == pytest.approx(0.5 / 4)  # relative where scores are above 1
    assert np.isnan(cosine(a, 0 * a))
    assert compare_vectors(0 * a, 0 * a) == (1, 0)  # a text about nothing
    for found in (compare_vectors(a, 0 * a), compare_vectors(0 * a, a), compare_vectors(0 * a, np.nan * a)):
        assert np.isnan(found[0])


def test_agreement_does_not_ask_which_of_two_equals_is_the_best():
    expected = np.array([[0.1, 0.9], [0.5, 0.5], [0.8, 0.2]])
    found = np.array([[0.2, 0.8], [0.4, 0.6], [0.2, 0.8]])
    assert agreement(expected, found, 1e-4) == pytest.approx(2 / 3)
    assert agreement(expected[:, :1], found[:, :1], 1e-4) == 1


@pytest.mark.parametrize("value", [np.nan, 2e-4])
def test_a_limit(value: float):
    measure = Measure("difference", 1e-4, 0.1)
    assert not measure.passes(value)
    assert measure.passes(9e-5)
    assert measure.at("int8").passes(0.09)
    assert measure.at("fp32", 0.5).passes(0.4)
    assert (measure.key, measure.required()) == ("max_difference", "difference at most 0.0001")
    best = Measure("agreement", 1.0, 0.0, at_least=True)
    assert (best.key, best.required()) == ("min_agreement", "agreement at least 1")
    assert best.badness(np.nan) == measure.badness(np.nan) == np.inf


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("_ALIASES in export/recipe.py", recipe._ALIASES.values()),
        ("_TASKS in export/model_files/adapters.py", adapters._TASKS.values()),
        ("benchmarks/arguments.py", arguments.TEXTS),
    ],
)
def test_what_names_a_task_names_one_that_is_there(where: str, names: Collection[str]):
    """A fork may have renamed it (docs/forking.md)."""
    gone = set(names) - set(TAGS)
    assert not gone, f"{where} names {', '.join(gone)}, which export/tasks/ has no longer: write its new name there"
