"""`python -m export`: a model becomes a bundle that answers like the model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import export.optimize
from engine.bundle import open_bundle
from tests import models
from tests.exports import TEXTS, Export, command, embed, reference
from tests.models import edit_json


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [
        ("bert", "mean"),
        ("bert", "cls"),
        ("bert", "lasttoken"),
        ("bert", "max"),
        ("roberta", "mean"),
        ("mpnet", "cls"),
        ("qwen3", "lasttoken"),
    ],
)
def test_a_bundle_answers_like_sentence_transformers(run: Export, tmp_path: Path, architecture: str, pooling: str):
    make = getattr(models, f"tiny_{architecture}")
    model = make(tmp_path / "model", pooling=pooling, normalize=pooling == "mean")
    assert run(model)[0] == 0
    ours, theirs = embed(tmp_path / "out/bundle", TEXTS), reference(model, TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_lowercasing_and_prompts_are_those_of_sentence_transformers(run: Export, tmp_path: Path):
    prompts = {"query": "What IS this: ", "passage": "passage: "}
    model = models.tiny_roberta(tmp_path / "model", prompts=prompts, default_prompt_name="passage")
    edit_json(model / "sentence_bert_config.json", do_lower_case=True)
    assert run(model)[0] == 0
    bundle = tmp_path / "out/bundle"
    np.testing.assert_allclose(embed(bundle, TEXTS), reference(model, TEXTS), atol=1e-5)
    asked = reference(model, TEXTS, prompt_name="query")
    np.testing.assert_allclose(embed(bundle, TEXTS, prompt_name="query"), asked, atol=1e-5)
    assert np.abs(asked - embed(bundle, TEXTS)).max() > 1e-3


def test_a_config_as_transformers_5_writes_it(run: Export, tmp_path: Path):
    """The reference reads the older form, for the transformers 4 that is installed would read this one wrongly."""
    older = models.tiny_qwen3(tmp_path / "older")
    edit_json(older / "config.json", rope_theta=1e6)
    newer = shutil.copytree(older, tmp_path / "model")
    config = json.loads((newer / "config.json").read_text())
    rope = {"rope_parameters": {"rope_theta": config.pop("rope_theta"), "rope_type": "default"}}
    models.write_json(newer / "config.json", {**config, **rope})
    assert run(newer)[0] == 0
    ours, theirs = embed(tmp_path / "out/bundle", TEXTS), reference(older, TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    assert np.abs(reference(newer, TEXTS) - theirs).max() > 1e-3


@pytest.mark.parametrize(
    "switched",
    [{"return_dict": False}, {"torchscript": True}, {"chunk_size_feed_forward": 1}, {"chunk_size_feed_forward": 4}],
)
def test_a_config_with_switches_that_change_no_number(
    run: Export, model: Path, bert_bundle: Path, tmp_path: Path, switched: dict[str, Any]
):
    """transformers takes pieces of 4 tokens where 4 divides a row alone."""
    edit_json(model / "config.json", **switched)
    code, _, said = run(model)
    assert (code, said) == (0, "")
    np.testing.assert_array_equal(embed(tmp_path / "out/bundle", TEXTS), embed(bert_bundle, TEXTS))


def test_a_model_without_sentence_transformers_files(run: Export, tmp_path: Path):
    model = models.tiny_roberta(tmp_path / "model", sentence_transformers=False)
    code, said, _ = run(model)
    assert code == 0
    assert "RobertaModel, mean pooling, up to 128 tokens" in said  # 130 positions, of which RoBERTa uses 128
    config = open_bundle(tmp_path / "out/bundle").manifest.task_config
    assert config == {
        "pooling": "mean",
        "dimension": models.HIDDEN,
        "max_length": models.POSITIONS,
        "normalize": False,
        "prompts": {},
        "default_prompt": None,
    }
    np.testing.assert_allclose(embed(tmp_path / "out/bundle", TEXTS), reference(model, TEXTS), atol=1e-4)


def test_a_model_with_pruned_heads(run: Export, model: Path, tmp_path: Path):
    import transformers

    pruned = transformers.BertModel.from_pretrained(model)
    pruned.prune_heads({0: [1], 1: [0, 3]})
    pruned.save_pretrained(model)
    assert json.loads((model / "config.json").read_text())["pruned_heads"]
    assert run(model)[0] == 0
    np.testing.assert_allclose(embed(tmp_path / "out/bundle", TEXTS), reference(model, TEXTS), atol=1e-5)


def test_options_replace_what_the_files_say(run: Export, bert: Path, tmp_path: Path):
    code, said, _ = run(bert, "--pooling", "cls", "--max-length", "16")
    assert code == 0
    assert "cls pooling, up to 16 tokens" in said
    config = open_bundle(tmp_path / "out/bundle").manifest.task_config
    assert (config["pooling"], config["max_length"]) == ("cls", 16)


def test_the_files_of_a_bundle(bert_bundle: Path):
    manifest = open_bundle(bert_bundle).manifest
    assert (manifest.model, manifest.revision, manifest.architecture) == ("tiny-bert", None, "BertModel")
    assert sorted(manifest.files) == [
        "config.json",
        "graphs/model/fp32.cpu.onnx",
        "graphs/model/fp32.onnx",
        "graphs/model/weights.bin",
        "parity.json",
        "recipe.toml",
        "tokenizer.json",
    ]
    graph = manifest.graphs["model"]
    assert [tensor.name for tensor in graph.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert {(tensor.dtype, tensor.shape) for tensor in graph.inputs} == {("int32", ("batch", "length"))}
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in graph.outputs] == [
        ("embedding", "float32", ("batch", models.HIDDEN))
    ]
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]["name"]
    assert {project, "torch", "transformers", "optimum-onnx", "onnxruntime"} <= set(manifest.versions)
    tokenizer = json.loads((bert_bundle / "tokenizer.json").read_text())
    assert tokenizer["truncation"] is tokenizer["padding"] is None


def test_pad_values_are_the_tokenizers(run: Export, tmp_path: Path):
    assert run(models.tiny_mpnet(tmp_path / "model"))[0] == 0
    inputs = open_bundle(tmp_path / "out/bundle").manifest.graphs["model"].inputs
    assert [(tensor.name, tensor.pad) for tensor in inputs] == [("input_ids", 1), ("attention_mask", 0)]


def test_a_pad_token_that_the_model_has_no_embedding_of(run: Export, tmp_path: Path):
    """As many decoders on the Hub have: nothing looks it up, for rows are padded with another one."""
    import transformers

    model = models.tiny_qwen3(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(model)
    assert tokenizer.pad_token_id == json.loads((model / "config.json").read_text())["vocab_size"]
    assert run(model)[0] == 0
    bundle = tmp_path / "out/bundle"
    expected = np.concatenate([reference(model, [text]) for text in TEXTS])
    np.testing.assert_allclose(embed(bundle, TEXTS), expected, atol=1e-5)


def test_the_portable_graph_is_what_tensorrt_takes(bert_bundle: Path):
    model = onnx.load(bert_bundle / "graphs/model/fp32.onnx", load_external_data=False)
    assert model.ir_version == 8
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert {tensor.type.tensor_type.elem_type for tensor in model.graph.input} == {onnx.TensorProto.INT32}
    axes = {axis.dim_param for tensor in model.graph.input for axis in tensor.type.tensor_type.shape.dim}
    assert axes == {"batch", "length"}
    assert not any("pooler" in tensor.name for tensor in model.graph.initializer)


def test_weights_are_stored_once(bert: Path, bert_bundle: Path):
    stored = (bert_bundle / "graphs/model/weights.bin").stat().st_size
    tensors = 50  # each may be followed by up to a page of padding
    assert stored < (bert / "model.safetensors").stat().st_size + tensors * export.optimize.ALIGNMENT


def test_nothing_in_a_bundle_tells_where_it_was_made(bert: Path, bert_bundle: Path):
    for file in bert_bundle.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert str(bert_bundle.parents[1]).encode() not in content
            assert b"partial-" not in content


def test_two_exports_are_equal_to_the_last_byte(run: Export, bert: Path, bert_bundle: Path, tmp_path: Path):
    assert run(bert)[0] == 0
    for file in bert_bundle.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "out/bundle" / file.relative_to(bert_bundle)).read_bytes(), file


def test_an_id_from_the_hubs_cache(bert: Path, bert_bundle: Path, tmp_path: Path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "home/hub/models--owner--tiny"
    shutil.copytree(bert, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    out = tmp_path / "bundle"
    done = command("owner/tiny", "--task", "feature-extraction", "--out", str(out), HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[:5]] == ["load", "onnx", "optimize", "write", "parity"]
    assert f"BUNDLE={out} python -m handler" in done.stdout
    manifest = open_bundle(out).manifest
    assert (manifest.model, manifest.revision) == ("owner/tiny", commit)
    for name in ("fp32.onnx", "fp32.cpu.onnx", "weights.bin"):  # another process, the same bytes
        assert (out / "graphs/model" / name).read_bytes() == (bert_bundle / "graphs/model" / name).read_bytes()


def test_help_needs_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "export", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "MODEL" in done.stdout
    assert "130 interrupted" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "optimum", "onnx", "onnxruntime", "numpy"}


def test_a_slow_tokenizers_files_are_converted(run: Export, model: Path, tmp_path: Path):
    (model / "tokenizer.json").unlink()
    assert run(model)[0] == 0
    np.testing.assert_allclose(embed(tmp_path / "out/bundle", TEXTS), reference(model, TEXTS), atol=1e-5)
