"""What single tasks refuse of a model, each by the smallest thing that causes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onnx import TensorProto, helper

from export import parity
from export.errors import ParityFailed, Refused
from export.gate.measures import NEIGHBOURS
from export.images import ImageExport
from export.onnx_from_model import _own_inputs
from export.recipe import Recipe
from export.tasks import export_task
from export.tasks.base import Layout
from export.text import TextExport
from tests.models import tiny_bert, write_json


def processors(task: str, folder: Path) -> Any:
    return export_task(task).processors(folder, "m", Layout(), Recipe("m", task, folder))


def sentence_of(task: str, folder: Path) -> str:
    with pytest.raises(Refused) as refused:
        processors(task, folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def image_processor_called(name: str, **methods: Any) -> dict[str, Any]:
    return {"processor": SimpleNamespace(processor=type(name, (), methods)())}


def test_depths_and_masks_of_other_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    both = {"post_process_semantic_segmentation": None, "post_process_panoptic_segmentation": None}
    for task, name, methods, sentence in (
        ("depth-estimation", "ZoeDepth", {}, "m's ZoeDepth treats depths in its own way; choose a DPT or GLPN model"),
        ("image-segmentation", "MaskFormer", both, "m's MaskFormer is not for semantic segmentation alone, which is"),
        ("image-segmentation", "ViT", {}, "m's ViT is not for semantic segmentation alone, which is what a bundle"),
    ):
        found = image_processor_called(name, **methods)
        monkeypatch.setattr(ImageExport, "processors", lambda *_, found=found: found)
        assert sentence_of(task, tmp_path).startswith(sentence)


def test_tokenizers_that_a_task_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = {"tokenizer": SimpleNamespace(mask_token_id=None, padding_side="left")}
    monkeypatch.setattr(TextExport, "processors", lambda *_: found)
    assert "m's tokenizer has no mask token, so that nothing can be filled in" in sentence_of("fill-mask", tmp_path)
    said = sentence_of("question-answering", tmp_path)
    assert said.startswith("m pads on the left, so that its context comes before the question; choose")


def behind_a_question(tokenizer: Any, length: int) -> None:
    options = {"stride": length // 2, "return_overflowing_tokens": True}
    tokenizer("What is the answer?", "word " * 99, truncation="only_second", max_length=length, **options)


def before_a_hypothesis(tokenizer: Any, length: int) -> None:
    tokenizer("word " * 99, "This example is cooking.", truncation="only_first", max_length=length)


@pytest.mark.parametrize(
    ("task", "cut"),
    [("question-answering", behind_a_question), ("zero-shot-classification", before_a_hypothesis)],
)
def test_rows_in_which_a_second_text_leaves_no_room(task: str, cut: Callable[[Any, int], None], tmp_path: Path):
    """The length that is named is the shortest: with a token less the tokenizer raises, or panics."""
    found = processors(task, tiny_bert(tmp_path / "model"))

    def longest(asked: int, positions: int = 128) -> int:
        recipe = Recipe("m", task, tmp_path, max_length=asked)
        return export_task(task).max_length(recipe, Layout(), found, None, positions)

    with pytest.raises(Refused, match=f"rows of 9 tokens are too short for {task}, which puts two texts in") as refused:
        longest(9)
    shortest = int(str(refused.value).removesuffix(" or more").rpartition("give --max-length ")[2])
    with pytest.raises(Refused, match=f"; it takes {shortest} or more, and the model has 9 positions; choose another"):
        longest(9, positions=9)
    with pytest.raises(Refused, match=f"rows of {shortest - 1} tokens are too short for"):
        longest(shortest - 1)
    assert longest(shortest) == shortest
    # Of a Source the probes read no more than that.
    source: Any = SimpleNamespace(max_length=shortest, config=None, **found)
    assert list(export_task(task).probes(source))
    cut(found["tokenizer"], shortest)
    with pytest.raises(BaseException, match="too short to respect|`stride` must be strictly less"):
        cut(found["tokenizer"], shortest - 1)


def test_what_hears_otherwise_than_the_worker(tmp_path: Path):
    speech = "automatic-speech-recognition"
    assert "m has no tokenizer that can be loaded: " in sentence_of(speech, tmp_path)
    tiny_bert(tmp_path / "bert")
    said = sentence_of(speech, tmp_path / "bert")
    assert said.startswith("m has a BertTokenizerFast; the worker decodes as Wav2Vec2CTCTokenizer does, so choose")
    said = sentence_of("audio-classification", tmp_path / "bert")
    assert said.startswith("m has no feature extractor that can be loaded: ")
    write_json(tmp_path / "bert/preprocessor_config.json", {"feature_extractor_type": "WhisperFeatureExtractor"})
    said = sentence_of("audio-classification", tmp_path / "bert")
    assert said.startswith("m has a WhisperFeatureExtractor; the worker has Wav2Vec2FeatureExtractor and ASTFeature")


def test_speech_that_is_normalised_over_time_in_an_unknown_place():
    from torch import nn

    from export.speech import _Padded

    layers = [SimpleNamespace(layer_norm=None), SimpleNamespace(layer_norm=nn.GroupNorm(4, 4))]
    base = SimpleNamespace(feature_extractor=SimpleNamespace(conv_layers=layers))
    model = SimpleNamespace(config=SimpleNamespace(conv_kernel=[10], conv_stride=[5]), base_model=base)
    with pytest.raises(Refused, match="the model normalises over time in a place that the worker does not know"):
        _Padded(model, (10, 5))


def test_images_and_texts_that_are_not_compared_as_vectors():
    config = SimpleNamespace(model_type="blip")
    with pytest.raises(Refused, match=r"m \(blip\) does not compare vectors; choose a model such as CLIP or SigLIP"):
        export_task("zero-shot-image-classification").check("m", config)


@pytest.mark.parametrize(
    ("kinds", "listed"),
    [
        (
            ["sentence_transformers.models.MLMTransformer", "sentence_transformers.models.Dense"],
            "MLMTransformer, Dense",
        ),
        (
            ["sentence_transformers.models.Transformer", "my_splade.SpladePooling"],
            "Transformer, custom my_splade.SpladePooling",
        ),
    ],
)
def test_modules_of_a_sparse_encoder(tmp_path: Path, kinds: list[str], listed: str):
    write_json(tmp_path / "modules.json", [{"type": kind, "path": ""} for kind in kinds])
    with pytest.raises(Refused, match=f"lists {listed}; a bundle holds a Transformer and SpladePooling"):
        export_task("sparse-encoder").layout(tmp_path, Recipe("m", "sparse-encoder", tmp_path))


@pytest.mark.parametrize("activation", ["torch.nn.modules.activation.Tanh", "my_module.Identity", "torchy.Sigmoid"])
@pytest.mark.parametrize("is_old", [False, True])
def test_activations_of_a_reranker(tmp_path: Path, activation: str, is_old: bool):
    if is_old:
        write_json(tmp_path / "config.json", {"sbert_ce_default_activation_function": activation})
    else:
        write_json(tmp_path / "config_sentence_transformers.json", {"activation_fn": activation})
    with pytest.raises(Refused, match=f"the model's activation is {activation}, a bundle takes one of"):
        export_task("text-ranking").layout(tmp_path, Recipe("m", "text-ranking", tmp_path))


def test_a_graph_that_reads_what_the_worker_does_not_feed():
    graph = helper.make_graph(
        [], "g", [helper.make_tensor_value_info("bbox", TensorProto.INT64, ["batch", "length", 4])], []
    )
    source: Any = SimpleNamespace(task=export_task("text-classification"))
    with pytest.raises(Refused, match="the model's graph reads bbox; the worker feeds input_ids, "):
        _own_inputs(graph, source)


def test_what_optimum_cannot_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr("optimum.exporters.onnx.onnx_export_from_model", fail)
    model = SimpleNamespace(config=SimpleNamespace(model_type="a"))
    source: Any = SimpleNamespace(model="m", architecture="A", exporter="optimum", load_model=lambda: model)
    with pytest.raises(Refused) as refused:
        export_task("fill-mask").trace(source, tmp_path)
    assert str(refused.value) == "m (A) cannot be traced by optimum: no such operator"


def test_answers_that_are_right_alone_and_wrong_together():
    source: Any = SimpleNamespace(task=SimpleNamespace(unit="texts"))
    with pytest.raises(ParityFailed) as failed:
        parity._judge_together({"graphs/model/fp16.onnx": {NEIGHBOURS.key: 0.5}}, source, [NEIGHBOURS.at("fp16")])
    assert str(failed.value) == ("the texts together differ from the reference (required: neighbours at least 0.9)")
    assert failed.value.exit_code == 1
    assert failed.value.rows == (("all", "fp16.onnx", "0.5000000"),)
