"""What is read from sentence-transformers' files, in the forms that its versions wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from export.errors import Refused
from export.model_files.dense import read_dense
from export.model_files.sentence_files import SentenceFiles, read_sentence_files
from tests.models import edit_json, tiny_qwen3, write_json, write_sentence_files


def test_a_model_without_the_files(tmp_path: Path):
    assert read_sentence_files(tmp_path) == SentenceFiles("", "mean", False, None, False, {}, None)
    assert read_sentence_files(tmp_path, "cls").pooling == "cls"


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "lasttoken"),
        ({"architectures": ["Qwen3ForCausalLM"], "is_causal": False}, "mean"),
        ({"architectures": ["Qwen3Model"]}, "mean"),
        ({"architectures": None}, "mean"),
    ],
)
def test_the_pooling_of_a_model_without_the_files_is_what_the_library_takes(
    tmp_path: Path, config: dict[str, Any], pooling: str
):
    from sentence_transformers import SentenceTransformer

    model = tiny_qwen3(tmp_path, sentence_transformers=False)
    edit_json(model / "config.json", **config)
    (_, theirs) = SentenceTransformer(str(model), device="cpu")
    assert read_sentence_files(model).pooling == theirs.pooling_mode == pooling


def test_everything_that_they_say(tmp_path: Path):
    prompts = {"query": "query: ", "passage": "passage: ", "document": None}
    write_sentence_files(tmp_path, "cls", True, 48, prompts=prompts, default_prompt_name="query")
    edit_json(tmp_path / "sentence_bert_config.json", do_lower_case=True)
    prompts_read = {"query": "query: ", "passage": "passage: ", "document": ""}
    assert read_sentence_files(tmp_path) == SentenceFiles("", "cls", True, 48, True, prompts_read, "query")


@pytest.mark.parametrize("name", ["query", "document"])
def test_a_default_prompt_that_every_model_has_is_empty(tmp_path: Path, name: str):
    from sentence_transformers import SentenceTransformer

    model = tiny_qwen3(tmp_path, prompts={"passage": "passage: "}, default_prompt_name=name)
    theirs = SentenceTransformer(str(model), device="cpu")
    assert (theirs.default_prompt_name, theirs.prompts[name]) == (name, "")
    found = read_sentence_files(model)
    assert (dict(found.prompts), found.default_prompt) == ({"passage": "passage: "}, None)
    edit_json(model / "config_sentence_transformers.json", prompts={name: "text: "})
    assert read_sentence_files(model).default_prompt == name


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken", "max", "weightedmean"])
def test_pooling_in_both_forms(tmp_path: Path, mode: str):
    write_sentence_files(tmp_path, mode, normalize=False)
    assert read_sentence_files(tmp_path).pooling == mode
    assert not read_sentence_files(tmp_path).normalize
    for value in (mode, [mode]):
        write_json(tmp_path / "1_Pooling/config.json", {"embedding_dimension": 32, "pooling_mode": value})
        assert read_sentence_files(tmp_path).pooling == mode


def test_arguments_that_change_no_number(tmp_path: Path):
    write_sentence_files(tmp_path, max_length=48)
    arguments = {"model_args": {"trust_remote_code": True}, "tokenizer_args": {"padding_side": "left"}}
    edit_json(tmp_path / "sentence_bert_config.json", **arguments)
    assert read_sentence_files(tmp_path).max_length == 48


def test_pooling_without_a_mode_is_mean(tmp_path: Path):
    write_sentence_files(tmp_path)
    write_json(tmp_path / "1_Pooling/config.json", {"word_embedding_dimension": 32})
    assert read_sentence_files(tmp_path).pooling == "mean"


def test_the_transformer_may_have_a_folder_of_its_own(tmp_path: Path):
    write_sentence_files(tmp_path)
    write_json(
        tmp_path / "modules.json",
        [
            {"path": "0_Transformer", "type": "sentence_transformers.base.modules.transformer.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
        ],
    )
    write_json(tmp_path / "0_Transformer/sentence_roberta_config.json", {"max_seq_length": 77})
    found = read_sentence_files(tmp_path)
    assert (found.transformer, found.max_length, found.normalize) == ("0_Transformer", 77, False)


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True},
            "the model's pooling is cls + mean, a bundle takes one of mean, cls, lasttoken, max, weightedmean; choose",
        ),
        ("1_Pooling/config.json", {"pooling_mode": "mean_sqrt_len_tokens"}, "the model's pooling is mean_sqrt_len"),
        ("1_Pooling/config.json", {"include_prompt": False}, "the model leaves its prompts out of pooling"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, 'have transformer_task = "fill-mask"'),
        (
            "sentence_bert_config.json",
            {"model_args": {"trust_remote_code": True, "variant": "fp16"}},
            "have model_args",
        ),
        ("sentence_bert_config.json", {"modality_config": {"message": {}}}, "put every text into the tokenizer's chat"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"truncation": False}}}, "processing_kwargs"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "the model is a SparseEncoder"),
        ("config_sentence_transformers.json", {"truncate_dim": 16}, "cut every embedding to 16 numbers (truncate_dim)"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "none"},
            "the model's default prompt 'none' is not among its prompts",
        ),
    ],
)
def test_refusals(tmp_path: Path, file: str, changes: dict[str, Any], sentence: str):
    write_sentence_files(tmp_path, prompts={"query": "query: "})
    edit_json(tmp_path / file, **changes)
    with pytest.raises(Refused) as refused:
        read_sentence_files(tmp_path)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("kinds", "sentence"),
    [
        (["Transformer", "Pooling", "LSTM"], "modules.json lists a LSTM module, which a bundle cannot hold"),
        (["Transformer", "Pooling", "Normalize", "Dense"], "a bundle holds Pooling, then Dense, then Normalize"),
        (["Transformer", "Dense", "Pooling"], "a bundle holds Pooling, then Dense, then Normalize"),
        (["Transformer"], "modules.json lists 0 Pooling modules instead of one; choose with --pooling"),
        (["Pooling"], "modules.json must begin with one Transformer module"),
        (["StaticEmbedding"], "modules.json lists a StaticEmbedding module"),
    ],
)
def test_modules_that_are_refused(tmp_path: Path, kinds: list[str], sentence: str):
    modules = [
        {"path": f"{i}_{k}" if i else "", "type": f"sentence_transformers.models.{k}"} for i, k in enumerate(kinds)
    ]
    write_json(tmp_path / "modules.json", modules)
    with pytest.raises(Refused) as refused:
        read_sentence_files(tmp_path)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("modules.json", {"a": 1}, "modules.json holds no list in JSON; download the model again"),
        ("modules.json", ["Transformer"], "modules.json is not a list of modules; download the model again"),
        ("sentence_bert_config.json", [], "sentence_bert_config.json holds no object in JSON; download the model"),
    ],
)
def test_files_of_another_form(tmp_path: Path, file: str, content: Any, sentence: str):
    write_sentence_files(tmp_path)
    write_json(tmp_path / file, content)
    with pytest.raises(Refused) as refused:
        read_sentence_files(tmp_path)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"activation_function": "torch.nn.modules.activation.PReLU"},
            "has the activation torch.nn.modules.activation",
        ),
        (
            {"activation_function": "custom.Tanh"},
            "has the activation custom.Tanh, a bundle takes one of Identity, ReLU",
        ),
        ({"module_input_name": "token_embeddings"}, "is not for the embedding of a text (module_input_name is token_"),
    ],
)
def test_layers_that_are_refused(tmp_path: Path, settings: dict[str, Any], sentence: str):
    write_json(tmp_path / "2_Dense/config.json", settings)
    with pytest.raises(Refused) as refused:
        read_dense(tmp_path / "2_Dense")
    assert sentence in str(refused.value)


def test_a_layer_without_safe_weights_is_refused(tmp_path: Path):
    write_json(tmp_path / "2_Dense/config.json", {"in_features": 2, "out_features": 2})
    layer = read_dense(tmp_path / "2_Dense")
    assert layer.activation == "Tanh"
    with pytest.raises(Refused, match=r"2_Dense has no model.safetensors, and pickled weights are never loaded"):
        layer.weights()
    save_file({"weight": np.zeros((2, 2), np.float32)}, tmp_path / "2_Dense/model.safetensors")
    with pytest.raises(Refused, match=r"holds weight instead of linear.weight; download the model again"):
        layer.weights()


def test_custom_modules_are_refused(tmp_path: Path):
    write_json(tmp_path / "modules.json", [{"path": "", "type": "custom_st.Transformer"}])
    with pytest.raises(Refused, match="lists a custom custom_st.Transformer module"):
        read_sentence_files(tmp_path)


def test_a_chosen_pooling_replaces_one_that_is_refused(tmp_path: Path):
    write_sentence_files(tmp_path)
    edit_json(tmp_path / "1_Pooling/config.json", pooling_mode="mean_sqrt_len_tokens")
    assert read_sentence_files(tmp_path, "max").pooling == "max"


def test_broken_json_is_named(tmp_path: Path):
    write_sentence_files(tmp_path)
    (tmp_path / "1_Pooling/config.json").write_text("{")
    with pytest.raises(Refused, match=r"1_Pooling/config.json is not valid JSON"):
        read_sentence_files(tmp_path)
