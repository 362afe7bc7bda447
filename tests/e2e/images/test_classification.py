"""image-classification and zero-shot-image-classification answer like transformers' pipelines."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.zoo.images import HEADS, LABELS
from engine.config import Settings
from tests.architectures import few
from tests.same import assert_same

TASK, ZERO_SHOT = "image-classification", "zero-shot-image-classification"
CANDIDATES = ["cat", "a picture of two dogs", "London at night", "café 机器学习", "boats on the river " * 20]


def pipeline_images(values: list[str]) -> list[Any]:
    from transformers.image_utils import load_image

    return [load_image(value) for value in values]


@pytest.mark.parametrize("architecture", few(HEADS[TASK][1], ("vit", "swin", "resnet")))
def test_labels_and_scores(zoo: Any, images: list[str], architecture: str):
    entry = zoo(TASK, architecture)
    expected = entry.expect(pipeline_images(images))
    found = entry.served.ask({"images": images})
    assert_same(found, expected)
    assert all(len(answer) == 5 for answer in found)
    assert_same(entry.served.ask_all([{"image": image} for image in images]), found, 1e-5)
    # The answers tell images apart.
    assert len({round(answer[0]["score"], 3) for answer in found}) > 3


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_the_function_and_the_number_of_labels_can_be_chosen(zoo: Any, images: list[str], function: str):
    entry = zoo(TASK, "vit")
    options = {"top_k": 2, "function_to_apply": function}
    assert_same(entry.served.ask({"inputs": images, **options}), entry.expect(pipeline_images(images), **options))
    whole = entry.served.ask({"image": images[0], "function_to_apply": function, "top_k": None})
    assert_same(whole, entry.expect(pipeline_images(images[:1]), function_to_apply=function, top_k=len(LABELS))[0])


@pytest.mark.parametrize(
    "config",
    [
        {"problem_type": "multi_label_classification"},
        {"problem_type": "regression", "id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}},
    ],
)
def test_other_heads(zoo: Any, images: list[str], config: dict[str, Any]):
    entry = zoo(TASK, "resnet", **config)
    assert_same(entry.served.ask({"images": images}), entry.expect(pipeline_images(images)))


@pytest.mark.parametrize("architecture", HEADS[ZERO_SHOT][1])
def test_zero_shot(zoo: Any, images: list[str], architecture: str):
    entry = zoo(ZERO_SHOT, architecture)
    # The pipeline does not cut texts for CLIP, and fails on long ones.
    candidates = CANDIDATES if architecture == "siglip" else CANDIDATES[:4]
    for options in ({}, {"hypothesis_template": "{}"}, {"hypothesis_template": "a {{{}}} in a {{house}}"}):
        expected = entry.expect(pipeline_images(images), candidate_labels=candidates, **options)
        found = entry.served.ask({"images": images, "candidate_labels": candidates, **options})
        assert_same(found, expected)
    alone = [{"image": image, "candidate_labels": candidates, **options} for image in images]
    assert_same(entry.served.ask_all(alone), found, 1e-5)
    assert len({answer[0]["label"] for answer in found} | {round(answer[0]["score"], 3) for answer in found}) > 3


@pytest.mark.parametrize("largest", [1_000_000, 300])
def test_the_parts_of_a_stream_share_their_labels(
    zoo: Any, images: list[str], largest: int, monkeypatch: pytest.MonkeyPatch
):
    """They run once, however many parts there are, and however often these are split."""
    served = zoo(ZERO_SHOT, "clip").served
    job = {"images": [images[index % len(images)] for index in range(9)], "candidate_labels": CANDIDATES[:4]}
    whole, made = served.ask(job), []

    def text_rows(texts: Any, check: Any) -> Any:
        made.append(len(texts))
        return type(served.task).text_rows(served.task, texts, check)

    monkeypatch.setattr(served.task, "text_rows", text_rows)
    monkeypatch.setattr("handler.parts._ROWS", 2)
    monkeypatch.setattr("handler.parts._LARGEST", largest)
    parts = served.stream(job)
    assert [len(part) for part in parts] == ([2, 2, 2, 2, 1] if largest > 300 else [1] * 9)
    assert made == [4]
    assert_same([answer for part in parts for answer in part], whole, 1e-5)
    assert_same(served.stream({**job, "images": job["images"][:1]}), [whole[:1]], 1e-5)


def test_one_label(zoo: Any, images: list[str]):
    for architecture in HEADS[ZERO_SHOT][1]:
        entry = zoo(ZERO_SHOT, architecture)
        expected = entry.expect(pipeline_images(images[:1]), candidate_labels=["cat"])
        assert_same(entry.served.ask({"image": images[0], "candidate_labels": ["cat"]}), expected[0])


def test_a_long_label_is_cut_at_what_the_model_takes(zoo: Any, images: list[str]):
    entry = zoo(ZERO_SHOT, "clip")
    (whole,) = entry.served.ask({"image": images[0], "candidate_labels": ["boats " * 500]})
    assert whole["score"] == pytest.approx(1)


BASE64 = "base64, a data URI (`data:...;base64,...`) or an https URL"


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({}, f"`input` needs either `image` ({BASE64}) or `images`"),
        ({"image": 3}, f"`image` must be {BASE64}, got a number"),
        ({"image": ["a"]}, "got a list, which goes into `images`"),
        ({"images": []}, f"`images` must hold 1 to {Settings().max_items} items, got 0"),
        ({"images": ["AAAA", None]}, f"`images[1]` must be {BASE64}, got null"),
        ({"image": "AAAA"}, "`image` is no image of a known format; send JPEG, PNG"),
        ({"image": "?"}, "`image` is neither a URL nor valid base64"),
        ({"image": ""}, "`image` is empty"),
        ({"image": "https://example.org/a.png"}, "this worker does not fetch URLs"),
        (
            {"image": "AAAA", "topk": 1},
            "unknown field `topk`; known are `function_to_apply`, `image`, `images`, `inputs`",
        ),
        ({"image": "AAAA", "top_k": 0}, "`top_k` must be a whole number from 1"),
        ({"image": "AAAA", "function_to_apply": "tanh"}, "`function_to_apply` must be one of softmax, sigmoid, none"),
    ],
)
def test_what_is_wrong_gets_a_sentence(zoo: Any, payload: dict[str, Any], sentence: str):
    refusal = zoo(TASK, "vit").served.refusal(payload)
    assert refusal.startswith("invalid input: ")
    assert sentence in refusal


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({}, "needs `candidate_labels`, a list of strings"),
        ({"candidate_labels": "cat"}, "`candidate_labels` must be a list of strings, got a string"),
        ({"candidate_labels": []}, "`candidate_labels` must hold 1 to"),
        ({"candidate_labels": ["cat"], "hypothesis_template": "a photo"}, "`hypothesis_template` must hold {}"),
        ({"candidate_labels": ["cat"], "hypothesis_template": "{{}}"}, "`hypothesis_template` must hold {}"),
        ({"candidate_labels": ["cat"], "hypothesis_template": "{} {"}, "any other brace twice, as {{ or }}"),
    ],
)
def test_what_is_wrong_with_candidates_gets_a_sentence(
    zoo: Any, images: list[str], payload: dict[str, Any], sentence: str
):
    assert sentence in zoo(ZERO_SHOT, "clip").served.refusal({"image": images[0], **payload})
