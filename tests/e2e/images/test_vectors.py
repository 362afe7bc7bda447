"""image-feature-extraction answers like transformers' pipeline; image-text-embedding like the model's own methods."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.zoo import vision
from benchmarks.zoo.image_specs import ARCHITECTURES as SPECS
from benchmarks.zoo.image_specs import Architecture
from benchmarks.zoo.images import HEADS, task_model, write_model
from engine.vectors import OUTPUT
from export.__main__ import main
from export.tasks.image_feature_extraction import TASK as EXPORTED
from tests.e2e.images.test_classification import CANDIDATES, pipeline_images
from tests.models import edit_json, write_json
from tests.served import Served

TASK, BOTH = "image-feature-extraction", "image-text-embedding"
ARCHITECTURES = ("vit", "swin", "resnet", "dinov2")


def assert_near(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Equal within `tolerance` of the largest number."""
    a, b = np.asarray(found), np.asarray(expected)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pooled_vectors(zoo: Any, images: list[str], architecture: str):
    entry = zoo(TASK, architecture)
    expected = np.array([np.ravel(vector) for vector in entry.expect(pipeline_images(images), pool=True)])
    found = entry.served.ask({"images": images})
    assert found["dimensions"] == expected.shape[1]
    assert_near(found["embeddings"], expected)
    alone = entry.served.ask_all([{"image": image} for image in images])
    assert_near([answer["embedding"] for answer in alone], found["embeddings"], 1e-5)
    assert np.ptp(expected, axis=0).max() > 0.1  # images differ


def test_vectors_of_every_patch(zoo: Any, images: list[str]):
    entry = zoo(TASK, "vit", "--pooling", "none")
    expected = np.concatenate(entry.expect(pipeline_images(images)))
    found = entry.served.ask({"images": images})
    assert_near(found["embeddings"], expected)
    coded = entry.served.ask({"image": images[0], "encoding_format": "base64"})
    vectors = np.frombuffer(base64.b64decode(coded["embedding"]), "<f4").reshape(-1, coded["dimensions"])
    assert_near(vectors, expected[0])


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_other_poolings(zoo: Any, images: list[str], pooling: str):
    entry = zoo(TASK, "dinov2", "--pooling", pooling)
    hidden = np.concatenate(entry.expect(pipeline_images(images)))
    expected = hidden[:, 0] if pooling == "cls" else hidden.mean(1)
    assert_near(entry.served.ask({"images": images})["embeddings"], expected)
    unit = entry.served.ask({"images": images, "normalize": True})["embeddings"]
    assert_near(unit, expected / np.linalg.norm(expected, axis=1, keepdims=True))


_LARGER = ("ViTImageProcessor", {"size": {"height": 64, "width": 64}})
_HIERA: dict[str, Any] = {
    "hidden_size": 8,
    "num_attention_heads": 1,
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [4, 4, 4, 4],
    "global_attention_blocks": [3],
    "window_positional_embedding_background_size": [4, 4],
}
_TEXTNET = {"hidden_sizes": [8, 8, 16, 16, 32], "stem_out_channels": 8}
# What has no pooler and no class token; and which axes of the hidden state are places.
WITHOUT_A_FIRST: dict[str, tuple[Architecture, tuple[int, ...]]] = {
    "segformer": (SPECS["segformer"], (2, 3)),
    "cvt": (vision.ARCHITECTURES["cvt"], (2, 3)),
    "sam2": (("Sam2HieraDetConfig", _HIERA, *_LARGER), (1, 2)),
    "ijepa": (vision.ARCHITECTURES["ijepa"], (1,)),
}


def hidden_states(folder: Path, images: list[str]) -> Any:
    """What the model answers in transformers, of all images."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    with torch.inference_mode():
        return model(**processor(images=pipeline_images(images), return_tensors="pt"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=(pytest.mark.zoo,) if name == "cvt" else ()) for name in WITHOUT_A_FIRST]
)
def test_without_a_pooler_and_a_class_token_the_mean_is_taken(tmp_path: Path, images: list[str], name: str):
    spec, places = WITHOUT_A_FIRST[name]
    folder = write_model(tmp_path / "model", TASK, spec)
    assert main([str(folder), "--task", TASK, "--out", str(tmp_path / "bundle")]) == 0
    served = Served(tmp_path / "bundle")
    expected = hidden_states(folder, images).last_hidden_state.numpy().mean(places)
    found = served.ask({"images": images})
    served.close()
    assert served.bundle.manifest.task_config["pooling"] == "mean"
    assert found["dimensions"] == expected.shape[1]
    assert_near(found["embeddings"], expected)


def test_vectors_of_every_place_of_a_map(zoo: Any, images: list[str]):
    """Row by row, as those of a ViT's patches: options are about the vector of a place."""
    entry = zoo(TASK, "segformer", "--pooling", "none")
    maps = hidden_states(entry.folder, images).last_hidden_state.numpy()
    expected = np.stack([maps[:, :, row, column] for row in range(2) for column in range(2)], axis=1)
    assert expected.shape == (len(images), 4, 32)
    found = entry.served.ask({"images": images})
    assert found["dimensions"] == 32
    assert_near(found["embeddings"], expected)
    unit = entry.served.ask({"images": images, "normalize": True})["embeddings"]
    assert_near(unit, expected / np.linalg.norm(expected, axis=2, keepdims=True))
    coded = entry.served.ask({"image": images[0], "encoding_format": "base64"})
    assert_near(np.frombuffer(base64.b64decode(coded["embedding"]), "<f4").reshape(-1, 32), expected[0])


def test_a_pooler_of_four_places(tmp_path: Path, images: list[str]):
    folder = write_model(tmp_path / "model", TASK, ("TextNetConfig", _TEXTNET, *_LARGER))
    assert main([str(folder), "--task", TASK, "--out", str(tmp_path / "bundle")]) == 0
    served = Served(tmp_path / "bundle")
    pooled = hidden_states(folder, images).pooler_output.numpy()
    assert pooled.shape[1:] == (32, 2, 2)
    assert_near(served.ask({"images": images})["embeddings"], pooled.reshape(len(images), -1))
    served.close()


def test_a_map_has_no_first_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, spec, option, sentence in (
        ("resnet", SPECS["resnet"], "cls", "map of places and has no first token; choose --pooling mean or none"),
        ("segformer", SPECS["segformer"], "pooler", "has no trained pooler; choose --pooling mean or none"),
        ("hgnet_v2", vision.ARCHITECTURES["hgnet_v2"], "mean", "has no last hidden state; choose a model that has one"),
    ):
        folder = write_model(tmp_path / name, TASK, spec)
        arguments = [str(folder), "--task", TASK, "--out", str(tmp_path / "bundle"), "--pooling", option]
        assert main(arguments) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_the_gate_sees_a_wrong_pooling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The vector of the first place instead of the mean: a reference by the same code would let it through."""

    def spoiled(task: Any, source: Any, model: Any, values: Any) -> Any:
        return {OUTPUT: model(**values).last_hidden_state[:, :, 0, 0]}

    monkeypatch.setattr(type(EXPORTED), "answer", spoiled)
    folder = task_model(tmp_path / "model", TASK, "segformer")
    assert main([str(folder), "--task", TASK, "--out", str(tmp_path / "bundle")]) == 1
    assert "answers differ from the reference" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", HEADS[BOTH][1])
def test_images_and_texts_in_one_space(zoo: Any, images: list[str], architecture: str):
    import torch
    import transformers

    entry = zoo(BOTH, architecture)
    model = transformers.AutoModel.from_pretrained(entry.folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(entry.folder, use_fast=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(entry.folder)
    padding = "max_length" if architecture == "siglip" else True
    tokens = tokenizer(CANDIDATES, padding=padding, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        pixels = processor(images=pipeline_images(images), return_tensors="pt")
        expected = {"image": model.get_image_features(**pixels), "text": model.get_text_features(**tokens)}
    for kind, values in (("image", images), ("text", CANDIDATES)):
        raw = expected[kind].numpy()
        assert_near(entry.served.ask({f"{kind}s": values, "normalize": False})["embeddings"], raw)
        unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        found = entry.served.ask({f"{kind}s": values})
        assert_near(found["embeddings"], unit)
        alone = entry.served.ask_all([{kind: value} for value in values])
        assert_near([answer["embedding"] for answer in alone], found["embeddings"], 1e-5)


def test_a_text_encoder_of_one_length_that_takes_a_mask(tmp_path: Path):
    """SigLIP's own tokenizer makes none; others that it was trained with do."""
    import torch
    import transformers

    folder = task_model(tmp_path / "model", BOTH, "siglip")
    edit_json(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    assert main([str(folder), "--task", BOTH, "--out", str(tmp_path / "bundle")]) == 0
    served = Served(tmp_path / "bundle")
    assert [spec.name for spec in served.bundle.manifest.graphs["text"].inputs] == ["input_ids", "attention_mask"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(CANDIDATES, padding="max_length", truncation=True, return_tensors="pt")
    with torch.inference_mode():
        expected = transformers.AutoModel.from_pretrained(folder).eval().get_text_features(**tokens).numpy()
    assert_near(served.ask({"texts": CANDIDATES, "normalize": False})["embeddings"], expected)
    served.close()


def test_the_length_of_texts_for_siglip_is_what_it_was_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Padding is part of its texts; a recipe names the length that was found."""
    folder = task_model(tmp_path / "model", BOTH, "siglip")
    arguments = [str(folder), "--task", BOTH, "--out", str(tmp_path / "bundle"), "--max-length"]
    for length in ("20", "65"):
        assert main([*arguments, length]) == 2
        said = capsys.readouterr().err
        assert f"--max-length {length}: SigLIP reads the last place of texts padded to 64 tokens" in said
        assert "leave it out" in said
    assert main([*arguments, "64"]) == 0


def test_siglips_own_tokenizer_which_is_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It drops punctuation, and looks at spiece.model alone: whether tokenizer.json does the same, its owner knows."""
    folder = task_model(tmp_path / "model", BOTH, "siglip")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    assert main([str(folder), "--task", BOTH, "--out", str(tmp_path / "bundle")]) == 2
    said = capsys.readouterr().err
    assert "model's SiglipTokenizer runs in Python alone and takes no notice of its tokenizer.json; where" in said
    assert "set tokenizer_class to PreTrainedTokenizerFast in tokenizer_config.json" in said


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({}, "`input` needs one of `image`, `images`, `text` and `texts`"),
        ({"text": "a", "image": "AAAA"}, "unknown field `image`; known are"),
        ({"text": 3}, "`text` must be a string, got a number"),
        ({"text": None, "images": None}, "`input` needs one of `image`, `images`, `text` and `texts`"),
        ({"image": None, "images": None, "text": 3}, "`text` must be a string, got a number"),
        ({"openai_route": "/v1/embeddings", "openai_input": {}}, "this worker's task has no answer to /v1/embeddings"),
        ({"texts": []}, "`texts` must hold 1 to"),
        ({"text": "a", "encoding_format": "hex"}, "`encoding_format` must be one of float, base64"),
        ({"image": "AAAA", "normalise": True}, "unknown field `normalise`"),
    ],
)
def test_what_is_wrong_gets_a_sentence(zoo: Any, payload: dict[str, Any], sentence: str):
    assert sentence in zoo(BOTH, "clip").served.refusal(payload)


def test_a_clip_model_of_sentence_transformers(images: list[str], tmp_path: Path):
    """As clip-ViT-B-32: one module, in a folder of its own; the task follows."""
    from sentence_transformers import SentenceTransformer

    model = tmp_path / "model"
    task_model(model / "0_CLIPModel", BOTH, "clip")
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    write_json(model / "modules.json", modules)
    assert main([str(model), "--out", str(tmp_path / "bundle")]) == 0
    served = Served(tmp_path / "bundle")
    assert served.bundle.manifest.task == BOTH
    theirs = SentenceTransformer(str(model), device="cpu")
    answers = served.ask({"texts": CANDIDATES, "normalize": False}), served.ask({"images": images, "normalize": False})
    served.close()
    assert_near(answers[0]["embeddings"], theirs.encode(CANDIDATES))
    assert_near(answers[1]["embeddings"], theirs.encode(pipeline_images(images)))
