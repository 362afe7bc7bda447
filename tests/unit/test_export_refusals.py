"""Refusals of single tasks and stages, each by the smallest thing that causes it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.zoo.vocabulary import word_piece_tokenizer
from export import image_processor
from export.__main__ import main
from export.command import exit_codes
from export.errors import Refused
from export.nodes import require_output
from export.recipe import Recipe
from export.tasks import export_task
from export.tasks.base import Layout, labels
from tests.models import write_json
from tests.pages import page


def graph(*outputs: str) -> Any:
    found = onnx.GraphProto()
    found.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in outputs)
    return found


def test_a_graph_without_what_the_task_is_made_of():
    with pytest.raises(
        Refused, match="the model's graph has no logits, which fill-mask needs, only a, b; choose another"
    ):
        require_output(graph("a", "b"), "logits", "fill-mask")
    source: Any = SimpleNamespace()
    with pytest.raises(Refused, match="has no last_hidden_state, the token vectors that feature-extraction pools"):
        export_task("feature-extraction").head(graph("logits"), source)


@pytest.mark.parametrize("names", [{}, {0: "a", 2: "c"}, {1: "b"}])
def test_labels_with_gaps(names: dict[int, str]):
    with pytest.raises(Refused, match="m's config.json has gaps in id2label; name every label from 0 on"):
        labels("m", SimpleNamespace(id2label=names))


@pytest.mark.parametrize(
    ("kind", "tag", "sentence"),
    [
        (
            "siglip2",
            "image-text-embedding",
            "m cuts every image into another number of patches (NaFlex); export a SigLIP",
        ),
        (
            "siglip2_vision_model",
            "image-feature-extraction",
            "m cuts every image into another number of patches (NaFlex); export a SigLIP",
        ),
        (
            "vit_mae",
            "image-feature-extraction",
            "m hides patches that it draws at random; save its encoder with ViTModel",
        ),
        ("clip", "image-feature-extraction", "m reads images and texts; export it with --task image-text-embedding"),
    ],
)
def test_models_on_images_that_no_graph_repeats(kind: str, tag: str, sentence: str):
    from transformers import AutoConfig

    with pytest.raises(Refused) as refused:
        export_task(tag).check("m", AutoConfig.for_model(kind))
    assert sentence in str(refused.value)


def test_a_reranker_with_a_chat_template(tmp_path: Path):
    recipe, task = Recipe("m", "text-ranking", tmp_path), export_task("text-ranking")
    tokenizer = word_piece_tokenizer("BertTokenizerFast")(tmp_path)
    tokenizer.chat_template = "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(Refused, match="m's tokenizer has a chat template, into which sentence-transformers puts query"):
        task.processors(tmp_path, "m", task.layout(tmp_path, recipe), recipe)
    module = {"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    write_json(tmp_path / "modules.json", [module])  # with which the library leaves it out, unless told otherwise
    assert task.processors(tmp_path, "m", task.layout(tmp_path, recipe), recipe)["tokenizer"].chat_template


@pytest.mark.parametrize("kinds", [["my_module.Transformer"], ["sentence_transformers.models.Transformer"] * 2, []])
def test_a_reranker_of_other_modules_than_one_transformer(tmp_path: Path, kinds: list[str]):
    write_json(tmp_path / "modules.json", [{"path": "", "type": kind} for kind in kinds])
    with pytest.raises(Refused) as refused:
        export_task("text-ranking").layout(tmp_path, Recipe("m", "text-ranking", tmp_path))
    listed = ", ".join(kind.replace("sentence_transformers.models.", "").replace("my", "custom my") for kind in kinds)
    assert str(refused.value).startswith(f"modules.json lists {listed or 'nothing'}; of a CrossEncoder a bundle holds")


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "T5ForConditionalGeneration"])
def test_a_reranker_that_generates(architecture: str):
    """Whatever its config.json says of labels, which transformers counts as two where it says nothing."""
    config = SimpleNamespace(architectures=[architecture], num_labels=2)
    with pytest.raises(Refused) as refused:
        export_task("text-ranking").check("m", config)
    assert str(refused.value) == (
        f"m is a {architecture}, which ranks by the logits of two words, and a bundle by one output alone; export a "
        "conversion of it to sequence classification with one label, or another model"
    )
    for held in (None, ["Qwen2ForSequenceClassification"]):
        export_task("text-ranking").check("m", SimpleNamespace(architectures=held, num_labels=1))


def test_a_reranker_with_a_prompt(tmp_path: Path):
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    write_json(tmp_path / "config_sentence_transformers.json", settings)
    with pytest.raises(Refused, match="the model puts a prompt before every text, which text-ranking cannot"):
        export_task("text-ranking").layout(tmp_path, Recipe("m", "text-ranking", tmp_path))


def test_a_model_on_images_and_texts_without_a_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import export.tasks.zero_shot_image_classification as task

    monkeypatch.setattr(task, "weight", lambda source, name: None)
    with pytest.raises(Refused, match="m has no logit_scale, which makes scores of its cosines"):
        export_task("zero-shot-image-classification").task_config(SimpleNamespace(model="m"), {})  # type: ignore[arg-type]


def test_an_image_processor_that_makes_patches():
    import torch

    found: Any = SimpleNamespace(
        geometry=SimpleNamespace(width=4, height=4),
        inputs=lambda image: {"pixel_values": torch.zeros(1, 16, 27), "patch_attention": torch.zeros(1, 16)},
    )
    with pytest.raises(Refused, match="m's image processor makes more of an image than three channels of pixels"):
        image_processor._plain(found, (0, 0, 0), "m")


def test_code_of_a_feature_extractor_is_not_run_because_somebody_pressed_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """transformers asks on the terminal where it was not told."""
    (tmp_path / "own.py").write_text("raise SystemExit('the code of the model was run')")
    write_json(tmp_path / "config.json", {"model_type": "unknown"})
    write_json(tmp_path / "preprocessor_config.json", {"auto_map": {"AutoFeatureExtractor": "own.Own"}})
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    task = export_task("audio-classification")
    with pytest.raises(Refused, match=r"m has no feature extractor that can be loaded: .*custom code"):
        task.processors(tmp_path, "m", Layout(), Recipe("m", task.tag, tmp_path))


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = main(argv)
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return code, printed


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "model").mkdir()
    code, sentence = said(capsys, str(tmp_path / "model"), "--out", str(tmp_path / "bundle"))
    assert (code, "model is empty; a model folder as `save_pretrained` writes it is needed" in sentence) == (2, True)


def test_code_of_a_model_that_ends_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    write_json(tmp_path / "m/config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}})
    (tmp_path / "m/own.py").write_text("raise SystemExit('no GPU')\n")
    argv = (str(tmp_path / "m"), "--task", "fill-mask", "--trust-remote-code", "--out", str(tmp_path / "bundle"))
    code, sentence = said(capsys, *argv)
    assert code == 2
    assert sentence == f"error: the code of {tmp_path}/m ends the program (no GPU); read it, and take that out\n"


def test_a_task_without_its_model_and_a_model_without_its_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "bundle")
    assert said(capsys, "--task", "fill-mask", "--out", out) == (
        2,
        "error: fill-mask needs a MODEL, a folder or an id on the Hugging Face Hub\n",
    )
    assert said(capsys, "m", "--task", "api-proxy", "--out", out) == (2, "error: api-proxy has no model; leave m out\n")
    for options in (["--precision", "int8"], ["--adapter", "a"], ["--parity-threshold", "0.5"], ["--max-length", "9"]):
        sentence = f"error: {options[0]} means nothing to api-proxy, which has no model; leave it out\n"
        assert said(capsys, "--task", "api-proxy", "--out", out, *options) == (2, sentence)


def test_the_page_tells_every_exit_code():
    text = page("docs/export.md")
    for code, word in exit_codes.STATUS.items():
        assert f"| {code} | `{word}` |" in text


def test_the_page_tells_every_key_of_a_recipe():
    from export.command.recipe_file import options_of
    from export.recipe import _parser

    text = page("docs/export.md")
    for action in _parser()._actions:
        if (
            action.help != "==SUPPRESS=="
            and action.option_strings
            and action.dest in ("recipe", "write_recipe", "json")
        ):
            assert action.option_strings[0] in text
    for table, keys in options_of(_parser()).items():
        for key in keys:
            assert any(words in text for words in (f"`{key}`", f"    {key} = ", f"`--{key}`")), (table, key)
