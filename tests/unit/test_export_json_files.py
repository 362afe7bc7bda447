"""A model's files where they hold what they may not: one sentence each, and never another meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.zoo.audio import tiny_speech
from export.__main__ import main
from export.errors import Refused
from export.model_files.dense import append_dense, read_dense
from export.model_files.json_files import read_json, read_processor
from export.model_files.sentence_files import read_sentence_files
from export.recipe import Recipe
from export.tasks import export_task
from export.tasks.base import Layout
from export.tokenizer.fast import fast_tokenizer
from tests.models import edit_json, write_json, write_sentence_files


@pytest.mark.parametrize(
    ("file", "key", "value", "kind"),
    [
        ("config.json", "architectures", [None], "a list of texts"),
        ("config.json", "model_type", [], "a text"),
        ("config.json", "id2label", [], "an object of texts or numbers"),
        ("config.json", "id2label", {"0": None}, "an object of texts or numbers"),
        ("config.json", "label2id", {"entailment": "x"}, "an object of whole numbers"),
        ("config.json", "sentence_transformers", "x", "an object"),
        ("adapter_config.json", "modules_to_save", 3, "a list of texts"),
        ("preprocessor_config.json", "image_processor_type", {}, "a text"),
        ("preprocessor_config.json", "do_resize", "false", "true or false"),
        ("processor_config.json", "image_processor", "x", "an object"),
        ("tokenizer_config.json", "model_max_length", 512.5, "a whole number"),
        ("tokenizer_config.json", "do_lower_case", "false", "true or false"),
    ],
)
def test_a_key_that_holds_what_it_may_not(tmp_path: Path, file: str, key: str, value: Any, kind: str):
    write_json(tmp_path / file, {key: value})
    with pytest.raises(Refused) as refused:
        read_json(tmp_path / file)
    assert str(refused.value) == (
        f"{tmp_path / file} has {key} = {json.dumps(value)}, which must be {kind}; correct it, or download the model "
        "again"
    )


@pytest.mark.parametrize("number", [0xD800, 0xDFFF])
def test_half_a_surrogate_pair_is_no_text(tmp_path: Path, number: int):
    """Wherever it is, in a name, too; a whole pair is a character."""
    path, half = tmp_path / "config_sentence_transformers.json", chr(number)
    write_json(path, {"prompts": {"query": "\U0001f642", "passage": "\u00fc\u2028"}, "other": "\\ud800"})
    assert read_json(path)["prompts"]["query"] == "\U0001f642"
    for prompts in ({"query": f"a{half}"}, {half: "a"}):
        write_json(path, {"prompts": prompts})
        with pytest.raises(Refused) as refused:
            read_json(path)
        assert str(refused.value) == (
            f"{path} holds \\u{number:04x}, half a surrogate pair, which no text has; correct it, or download "
            "the model again"
        )


def test_a_vocabulary_of_characters_with_half_of_one(tmp_path: Path):
    """Which the bundle's manifest would have to hold."""
    folder = tiny_speech(tmp_path, "wav2vec2", "ForCTC")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    edit_json(folder / "vocab.json", **{"\ud800": vocabulary.pop("X")})
    with pytest.raises(Refused, match=r"vocab.json holds .ud800, half a surrogate pair"):
        export_task("automatic-speech-recognition").processors(folder, "m", Layout(), Recipe("m", None, tmp_path))


def test_what_is_written_otherwise_in_some_models_passes(tmp_path: Path):
    content: dict[str, Any] = {"model_max_length": 1e30, "do_lower_case": None}
    write_json(tmp_path / "tokenizer_config.json", content)
    assert read_json(tmp_path / "tokenizer_config.json") == content
    content = {"id2label": {"0": 0, "1": "b"}, "label2id": {"a": "0", "b": 1}, "architectures": None}
    write_json(tmp_path / "config.json", content)
    assert read_json(tmp_path / "config.json") == content


@pytest.mark.parametrize(
    ("file", "key", "value", "kind"),
    [
        ("1_Pooling/config.json", "pooling_mode_mean_tokens", "false", "true or false"),
        ("1_Pooling/config.json", "pooling_mode", {"cls": True}, "a text or a list of texts"),
        ("config_sentence_transformers.json", "prompts", 3, "an object of texts"),
        ("config_sentence_transformers.json", "prompts", {"q": 1}, "an object of texts"),
        ("sentence_bert_config.json", "max_seq_length", "x", "a whole number from 1 up"),
        ("sentence_bert_config.json", "max_seq_length", True, "a whole number from 1 up"),
        ("sentence_bert_config.json", "do_lower_case", "false", "true or false"),
    ],
)
def test_wrong_values_in_the_files_of_sentence_transformers(tmp_path: Path, file: str, key: str, value: Any, kind: str):
    write_sentence_files(tmp_path)
    edit_json(tmp_path / file, **{key: value})
    with pytest.raises(Refused, match=f"has {key} = .*, which must be {kind}; correct it"):
        read_sentence_files(tmp_path)


def test_a_module_of_another_form_and_the_values_of_other_tasks(tmp_path: Path):
    write_json(tmp_path / "modules.json", [{"type": "sentence_transformers.models.Transformer", "path": 3}])
    with pytest.raises(Refused, match="has path = 3, which must be a text; correct it"):
        read_sentence_files(tmp_path)
    kinds = {"": "Transformer", "1": "SpladePooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    write_json(tmp_path / "modules.json", modules)
    write_json(tmp_path / "config_sentence_transformers.json", {"model_type": "SparseEncoder"})
    for key, value in (("pooling_strategy", "mean"), ("activation_function", "gelu")):
        write_json(tmp_path / "1/config.json", {key: value})  # both were taken for another one
        with pytest.raises(Refused, match=f'has {key} = "{value}", which must be one of'):
            export_task("sparse-encoder").layout(tmp_path, Recipe("m", "sparse-encoder", tmp_path))
    (tmp_path / "modules.json").unlink()
    write_json(tmp_path / "config_sentence_transformers.json", {})
    write_json(tmp_path / "config.json", {"sentence_transformers": {"activation_fn": 3}})
    with pytest.raises(Refused, match="has activation_fn = 3, which must be a text; correct it"):
        export_task("text-ranking").layout(tmp_path, Recipe("m", "text-ranking", tmp_path))


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"])
def test_a_file_that_cannot_be_read_is_not_taken_for_one_that_is_not_there(tmp_path: Path, name: str):
    """A cache that lost its blobs would otherwise give mean pooling and another length."""
    write_sentence_files(tmp_path, "cls")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "blob")
    with pytest.raises(Refused, match=f"{name} cannot be read .a link to a file that is not there.; download the"):
        read_sentence_files(tmp_path)
    (tmp_path / "blob").mkdir()
    with pytest.raises(Refused, match=f"{name} cannot be read .Is a directory.; download the model again"):
        read_sentence_files(tmp_path)
    (tmp_path / "blob").rmdir()
    (tmp_path / "blob").write_text("[" * 100_000)
    with pytest.raises(Refused, match=f"{name} is not valid JSON .*recursion"):
        read_sentence_files(tmp_path)


def test_a_folder_of_a_module_that_was_not_downloaded(tmp_path: Path):
    write_sentence_files(tmp_path, "cls")
    (tmp_path / "1_Pooling/config.json").unlink()
    with pytest.raises(Refused, match=r"1_Pooling/config.json is missing or empty, though modules.json names its"):
        read_sentence_files(tmp_path)


def test_a_layer_that_does_not_fit(tmp_path: Path):
    from onnx import GraphProto, TensorProto, helper

    layer = tmp_path / "2_Dense"
    write_json(layer / "config.json", {"in_features": 3, "out_features": 2})
    (layer / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(Refused, match=r"2_Dense/model.safetensors cannot be read \(.*\); download the model again"):
        read_dense(layer).weights()
    save_file({"linear.weight": np.ones((2, 3), np.float32), "linear.bias": np.ones(3, np.float32)}, layer / "a")
    (layer / "a").replace(layer / "model.safetensors")
    with pytest.raises(Refused, match="holds a weight and a bias that do not fit together; download"):
        read_dense(layer).weights()
    save_file({"linear.weight": np.ones((2, 3), np.float32)}, layer / "model.safetensors")
    graph = GraphProto(output=[helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 4])])
    graph.node.append(helper.make_node("Identity", ["x"], ["embedding"]))
    with pytest.raises(Refused, match="2_Dense is for vectors of 3 numbers, and gets 4; download the model again"):
        append_dense(graph, [read_dense(layer)])


@pytest.mark.parametrize("lacks", ["post_processor", "unk_token"])
def test_a_tokenizer_whose_parts_do_not_know_each_other(tmp_path: Path, lacks: str):
    """The tokenizers library finds out when it runs, by a panic or by an error of no class."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "a": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    content = json.loads(made.to_str())
    if lacks == "post_processor":
        content["post_processor"]["special_tokens"] = {}
    else:
        del content["model"]["vocab"]["[UNK]"]
    write_json(tmp_path / "tokenizer.json", content)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    with pytest.raises(Refused, match="m has no tokenizer that can be used: .*; its folder needs what save_pretrained"):
        fast_tokenizer(tmp_path, "m", Recipe("m", "fill-mask", tmp_path))


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("Wav2Vec2", "sampling_rate", None),
        ("Wav2Vec2", "sampling_rate", 16e3),
        ("Wav2Vec2", "do_normalize", "false"),
        ("AST", "max_length", 1e400),
    ],
)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_odd_settings_of_a_feature_extractor(tmp_path: Path, kind: str, key: str, value: Any, file: str):
    write_json(tmp_path / "config.json", {"model_type": "wav2vec2"})
    settings = {"feature_extractor_type": f"{kind}FeatureExtractor", "sampling_rate": 16000, "do_normalize": True}
    settings |= {"num_mel_bins": 32, key: value}
    write_json(tmp_path / file, {"feature_extractor": settings} if file.startswith("processor") else settings)
    with pytest.raises(Refused, match=f"/{file} has {key} = .*, which must be .*; correct it, or download"):
        export_task("audio-classification").processors(tmp_path, "m", Layout(), Recipe("m", None, tmp_path))


@pytest.mark.parametrize(
    "changes",
    [{"size": []}, {"size": {"height": 1e400, "width": 32}}, {"resample": 1e400}, {"image_mean": [0.5, 1e400, 0.5]}],
)
def test_odd_settings_of_an_image_processor(tmp_path: Path, changes: dict[str, Any]):
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    write_json(tmp_path / "preprocessor_config.json", {**settings, **changes})
    with pytest.raises(
        Refused,
        match="m('s ViTImageProcessor is none of those| has no image processor that can be)",
    ):
        export_task("image-classification").processors(tmp_path, "m", Layout(), Recipe("m", None, tmp_path))


def test_odd_settings_among_those_of_several_parts(tmp_path: Path):
    write_json(tmp_path / "processor_config.json", {"image_processor": {"image_processor_type": 3}})
    with pytest.raises(
        Refused, match="/processor_config.json has image_processor_type = 3, which must be a text; corr"
    ):
        read_processor(tmp_path)


def test_entailment_without_label2id():
    from types import SimpleNamespace

    config: Any = SimpleNamespace(label2id=None, num_labels=3)
    with pytest.raises(Refused, match="m has no label that begins with entail, only none in label2id; export a model"):
        export_task("zero-shot-classification").check("m", config)


def test_a_line_of_parity_data_and_a_recipe_that_are_too_deep(
    tmp_path: Path, small_bundle: Path, capsys: pytest.CaptureFixture[str]
):
    from engine.bundle import open_bundle
    from export.gate.data import read_payloads

    (tmp_path / "lines").write_text("[" * 100_000)
    with pytest.raises(Refused, match="lines, line 1: not JSON .maximum recursion depth"):
        read_payloads(tmp_path / "lines", open_bundle(small_bundle))
    (tmp_path / "recipe.toml").write_text("task = " + "[" * 100_000)
    assert main(["--recipe", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")]) == 2
    assert "recipe.toml is not valid TOML: " in capsys.readouterr().err
