"""Small payloads that would become gigabytes, or weeks of work, before an engine or a queue refuses them."""

from __future__ import annotations

import base64
import io
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.audio.example import recording
from engine.bundle import open_bundle
from engine.config import Limits
from engine.errors import AnswerTooLarge, InvalidInput
from engine.images.task import ImageTask
from engine.tasks import TASKS, task_class
from engine.tensors import TensorSpec
from engine.text.tokens import Free, Tokens
from handler.reply import encode
from tests.bundles import write_small_bundle

PIXEL = io.BytesIO()
Image.new("RGB", (1, 1)).save(PIXEL, "PNG")
IMAGE = base64.b64encode(PIXEL.getvalue()).decode()
RATE, STRIDE = 16_000, 320
SPEECH = {
    "tokens": ["<pad>", "a"],
    "vocabulary": {"pad": "<pad>", "delimiter": "|", "space": " ", "lowercase": False, "clean_up": False},
    "features": {"kind": "waveform", "rate": RATE, "normalize": True, "field": 400, "stride": STRIDE},
    "max_length": 1500,
}


def of(tag: str) -> Any:
    """The class of a task; a fork that has removed it has none of its cases."""
    if tag not in TASKS:
        pytest.skip(f"there is no {tag}")
    return task_class(tag)


@pytest.fixture(scope="module")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_bundle(write_small_bundle(tmp_path_factory.mktemp("costly") / "bundle"))


def refusal(task: Any, payload: Any) -> str:
    with pytest.raises(InvalidInput) as error:
        task.preprocess(task.parse(payload))
    return str(error.value)


def test_images_of_a_hundred_bytes():
    geometry = {"height": 800, "width": 800, "resize": "exact", "size": (800, 800)}
    task = ImageTask({"image": geometry}, Limits(max_row_bytes=4_000_000))
    assert len(task.preprocess(task.parse({"images": [IMAGE] * 2}))) == 2
    said = refusal(task, {"images": [IMAGE] * 3})
    assert said.startswith("`images[2]` and what is before it become more than 4000000 bytes for the engine")
    whole = task.parse({"images": [IMAGE] * 4})
    assert [len(task.preprocess(part)) for part in task.split(whole, 2)] == [2, 2]
    transform = of("image-transform")(Limits(max_row_bytes=100))
    assert "MAX_ROW_BYTES" in refusal(transform, {"images": [IMAGE] * 2, "width": 100, "format": "png"})


def picture(width: int, height: int) -> str:
    content = io.BytesIO()
    Image.new("1", (width, height)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


NAMED = {"labels": ["O", "B-X"], "unk_token_id": None}
SMALL = {"image": {"height": 8, "width": 8, "resize": "exact", "size": (8, 8)}, "labels": ["sky", "sea"]}
TOO_LARGE = "the reply would have more than 100000000 bytes; send fewer images, or smaller ones"


@pytest.mark.parametrize(("kind", "pixels"), [("base64", 18_750_000), ("float", 10_000_000)])
def test_depths_of_images_of_a_few_kilobytes(kind: str, pixels: int):
    """Refused before the engine runs."""
    task = of("depth-estimation")(SMALL, Limits(max_pixels=50_000_000))
    half = picture(5000, pixels // 10_000)
    payload = {"images": [half] * 2, "predicted_depth": kind}
    task.preprocess(task.parse(payload))
    assert refusal(task, {**payload, "images": [half, half, IMAGE]}) == TOO_LARGE
    task.preprocess(task.parse({**payload, "images": [half, half, IMAGE], "predicted_depth": "none"}))


@pytest.mark.parametrize(
    ("tag", "options"),
    [
        ("depth-estimation", {}),
        ("image-segmentation", {}),
        ("image-segmentation", {"mask_format": "rle"}),
    ],
)
def test_pictures_of_images_of_a_few_kilobytes(tag: str, options: Any, monkeypatch: pytest.MonkeyPatch):
    """How large a picture is, or a mask, is told when it is made: no more are made than the reply may hold."""
    made = 0
    kind = of(tag)
    answer = kind.answer

    def counting(self: Any, *given: Any) -> Any:
        nonlocal made
        made += 1
        return answer(self, *given)

    monkeypatch.setattr(kind, "answer", counting)
    outputs = {
        "predicted_depth": np.random.default_rng(0).random((8, 8), np.float32),
        "logits": np.random.default_rng(1).random((2, 8, 8), np.float32),
    }
    counted = kind(SMALL, Limits())
    request = counted.parse({"images": [picture(100, 100)] * 50, **options})
    assert len(counted.preprocess(request)) == 50
    (first, *_) = counted.postprocess(request, [outputs] * 50)
    size = len(encode({"output": first}))
    monkeypatch.setattr("engine.images.task.MOST_REPLY_BYTES", 10 * size)
    made = 0
    with pytest.raises(InvalidInput, match="the reply would have more than [0-9]+ bytes; send fewer images"):
        counted.postprocess(request, [outputs] * 50)
    assert 3 < made < 20


def test_recordings_and_windows_of_one():
    task = speech(Limits(max_row_bytes=100_000))
    task.preprocess(task.parse({"audio": recording(1.0)}))
    assert "`audios[1]` and what is before it" in refusal(task, {"audios": [recording(1.0)] * 2})
    task = speech(Limits(max_row_bytes=1_000_000))
    payload = {"audio": recording(5.0), "chunk_length_s": 1.0}
    task.preprocess(task.parse(payload))
    assert "`audio` and what is before it" in refusal(task, {**payload, "stride_length_s": [0.5, 0.48]})


def test_windows_of_several_recordings(monkeypatch: pytest.MonkeyPatch):
    """Those of one job together; what is behind the one too many is not decoded."""
    task = speech(Limits(max_queued_rows=9))
    payload = {"audios": [recording(1.0)] * 4, "chunk_length_s": 0.3, "stride_length_s": 0}
    request = task.parse(payload)
    assert [len(task.preprocess(part)) for part in task.split(request, 2)] == [8, 8]
    decoded: list[str] = []
    part = task.part

    def counting(field: str, *given: Any) -> Any:
        decoded.append(field)
        return part(field, *given)

    monkeypatch.setattr(task, "part", counting)
    said = refusal(task, payload)
    assert said == "the job makes more than 9 rows, as many as may wait (MAX_QUEUED_ROWS); split it"
    assert decoded == ["audios[0]", "audios[1]", "audios[2]"]


def test_windows_too_short_for_a_frame():
    """Whose fault is not the recording's: the model reads 400 samples, windows are made of steps of 320."""
    task = speech(Limits())
    for length_s in (0.001, 0.02, 0.025):
        with pytest.raises(InvalidInput) as error:
            task.parse({"audio": recording(1.0), "chunk_length_s": length_s})
        assert str(error.value) == "`chunk_length_s` must be at least 0.04, what the model needs, or 0"
    assert len(task.preprocess(task.parse({"audio": recording(1.0), "chunk_length_s": 0.04}))) == 25


def test_texts_times_labels(text_bundle: Any):
    task = of("zero-shot-classification").from_bundle(text_bundle, Limits(max_queued_rows=99))
    payload = {"texts": ["a"] * 10, "candidate_labels": ["b"] * 10}
    assert refusal(task, payload) == (
        "the job makes more than 99 rows, as many as may wait (MAX_QUEUED_ROWS); split it"
    )


def of_images(limits: Limits) -> Any:
    """To check payloads with, which takes no tokenizer."""
    no_tokens: Any = None
    return of("zero-shot-image-classification")({"image": {"height": 8, "width": 8}}, limits, no_tokens, ())


def test_a_label_in_a_thousand_places(text_bundle: Any):
    task = of_images(Limits(max_chars=1000))
    payload = {"image": IMAGE, "candidate_labels": ["a" * 1000], "hypothesis_template": "{}" * 500}
    said = refusal(task, payload)
    assert said == "`hypothesis_template` with a label has up to 500000 characters, allowed are 1000"


def test_a_template_for_a_thousand_labels(text_bundle: Any):
    """In all; texts of a payload are as long as it is, these are not."""
    task = of_images(Limits(max_items=2000))
    payload = {"image": IMAGE, "hypothesis_template": "a " * 2000 + "{}"}
    task.parse({**payload, "candidate_labels": ["b"] * 1000})
    said = refusal(task, {**payload, "candidate_labels": ["b"] * 1049})
    assert said == (
        "`hypothesis_template` with every label has 4197049 characters in all, allowed are 4194304; shorten it"
    )
    of_images(Limits(max_items=2000, max_chars=5_000_000)).parse({**payload, "candidate_labels": ["b"] * 1049})


TEXT_INPUTS = (TensorSpec("input_ids", "int32", ("batch", "length"), 0),)


def of_texts_and_images(bundle: Any) -> Any:
    return of("zero-shot-image-classification")(SMALL, Limits(max_items=2000), Tokens(bundle), TEXT_INPUTS)


LABELS = [f"label {index}" for index in range(1000)]
MANY_LABELS = {**SMALL, "labels": LABELS, "function": "none"}


@pytest.mark.parametrize(
    ("task", "payload", "most", "fix"),
    [
        (
            of_texts_and_images,
            {"images": [IMAGE] * 20, "candidate_labels": LABELS},
            20 * (25 * 1000 + 8890),
            "send fewer images or labels at once, or ask for a `stream`",
        ),
        (
            lambda _: of("image-classification")(MANY_LABELS, Limits()),
            {"images": [IMAGE] * 20, "top_k": None},
            20 * (25 * 1000 + 8890),
            "lower `top_k`, or send less at once",
        ),
        (
            lambda _: of("image-classification")(MANY_LABELS, Limits()),
            {"images": [IMAGE] * 20, "top_k": 600},
            20 * (25 * 600 + 10 * 7 + 90 * 8 + 500 * 9),
            "lower `top_k`, or send less at once",
        ),
        (
            lambda bundle: of("text-classification")(Tokens(bundle), MANY_LABELS, Limits()),
            {"texts": ["a"] * 20, "top_k": None},
            20 * (25 * 1000 + 8890),
            "lower `top_k`, or send less at once",
        ),
        (
            lambda _: of("audio-classification")({**SPEECH, "labels": LABELS}, Limits()),
            {"audios": [recording(0.1)] * 20},
            20 * (25 * 1000 + 8890),
            "lower `top_k`, or send less at once",
        ),
        (
            lambda bundle: of("zero-shot-classification").from_bundle(bundle, Limits(max_items=2000)),
            {"texts": ["abc"] * 20, "candidate_labels": LABELS},
            20 * (7 * 1000 + 8890 + 3),
            "send fewer texts or labels at once",
        ),
    ],
    ids=["images and texts", "images", "the best of images", "texts", "sound", "texts and labels"],
)
def test_labels_of_many(
    text_bundle: Any, task: Any, payload: Any, most: int, fix: str, monkeypatch: pytest.MonkeyPatch
):
    """What RunPod would not take is refused before a row is made, and nothing that it would."""
    made = task(text_bundle)
    monkeypatch.setattr("engine.tasks.payload.LARGEST_REPLY", most)
    request = made.parse(payload)
    assert len(made.preprocess(request)) >= 20
    monkeypatch.setattr("engine.tasks.payload.LARGEST_REPLY", most - 1)
    said = refusal(made, payload)
    assert said.startswith("the answer would hold more than the ")
    assert said.endswith(f" that RunPod takes; {fix}")


def outputs_of(task: Any, rows: Any) -> Any:
    draw = np.random.default_rng(0)
    one = {
        "logits": np.tile(np.eye(2, dtype=np.float32)[1], (32, 1)),
        "weights": draw.random(60, np.float32),
        "scores": draw.random(100, np.float32),
        "classes": np.zeros(100, np.int32),
        "boxes": draw.random((100, 4), np.float32),
    }
    return [one] * len(rows)


@pytest.mark.parametrize(
    ("task", "payload", "fix"),
    [
        (
            lambda bundle: of("token-classification")(Tokens(bundle, cut="none"), NAMED, Limits()),
            {"texts": ["a b c d"] * 50},
            "name more labels in `ignore_labels`, or send less at once",
        ),
        (
            lambda bundle: of("token-classification")(Tokens(bundle, cut="none"), NAMED, Limits()),
            {"texts": ["a b c d"] * 50, "aggregation_strategy": "simple"},
            "name more labels in `ignore_labels`, or send less at once",
        ),
        (
            lambda bundle: of("sparse-encoder").from_bundle(bundle, Limits()),
            {"texts": ["a"] * 50},
            "lower `top_k`, or send less at once",
        ),
        (
            lambda bundle: of("sparse-encoder").from_bundle(bundle, Limits()),
            {"texts": ["a"] * 50, "format": "indices"},
            "lower `top_k`, or send less at once",
        ),
        (
            lambda _: of("object-detection")(SMALL, Limits()),
            {"images": [IMAGE] * 50, "threshold": 0},
            "raise `threshold`, or send fewer images at once",
        ),
    ],
    ids=["tokens", "groups", "sparse", "indices", "objects"],
)
def test_answers_are_counted_while_they_are_made(
    text_bundle: Any, task: Any, payload: Any, fix: str, monkeypatch: pytest.MonkeyPatch
):
    """Python's objects for gigabytes of them would be there before anybody saw how large the reply is."""
    made = task(text_bundle)
    request = made.parse(payload)
    outputs = outputs_of(made, made.preprocess(request))
    size = len(encode({"output": made.postprocess(request, outputs)}))
    monkeypatch.setattr("engine.tasks.payload.LARGEST_REPLY", size)
    made.postprocess(request, outputs)
    answered: list[Any] = []

    def answer(item: Any, *others: Any) -> Any:
        answered.append(item)
        return type(made).answer(made, item, *others)

    monkeypatch.setattr(made, "answer", answer)
    monkeypatch.setattr("engine.tasks.payload.LARGEST_REPLY", size // 10)
    with pytest.raises(AnswerTooLarge, match=f" that RunPod takes; {fix}$"):
        made.postprocess(request, outputs)
    assert 5 <= len(answered) <= 30


def test_a_word_of_the_vocabulary_may_be_called_values(text_bundle: Any):
    task = of("sparse-encoder").from_bundle(text_bundle, Limits())
    assert task.least_bytes({"values": 0.5, "indices": 0.25}) == task.least_bytes({"indices": [1, 2], "values": [1, 2]})


@pytest.mark.parametrize(
    ("task", "payload"),
    [
        (of_texts_and_images, {"image": IMAGE, "candidate_labels": ["a", "b"]}),
        (
            lambda bundle: of("image-text-embedding")(SMALL, Limits(max_items=2000), Tokens(bundle), TEXT_INPUTS),
            {"texts": ["a"] * 100},
        ),
        (lambda _: ImageTask(SMALL, Limits()), {"images": [IMAGE] * 3}),
        (lambda _: speech(Limits()), {"audios": [recording(0.1)] * 3}),
    ],
    ids=["labels of images", "texts beside images", "images", "sound"],
)
def test_a_job_that_was_stopped_decodes_and_tokenises_nothing_further(
    text_bundle: Any, task: Any, payload: Any, monkeypatch: pytest.MonkeyPatch
):
    made = task(text_bundle)
    request = made.parse(payload)
    part, parts = made.part, []

    def stopped_behind_the_first(*given: Any) -> Any:
        parts.append(given)
        request.spent.stop()
        return part(*given)

    monkeypatch.setattr(made, "part", stopped_behind_the_first)
    if "texts" in payload:
        request.spent.stop()
    with pytest.raises(InvalidInput, match="^the job was stopped$"):
        made.preprocess(request)
    assert len(parts) == (0 if "texts" in payload else 1)


def test_answers_of_a_job_that_was_stopped_are_not_made(text_bundle: Any):
    task = of("sparse-encoder").from_bundle(text_bundle, Limits())
    request = task.parse({"texts": ["a"] * 3})
    outputs = outputs_of(task, task.preprocess(request))
    answers = task.answers(request, outputs)
    next(answers)
    request.spent.stop()
    with pytest.raises(InvalidInput, match="^the job was stopped$"):
        next(answers)


@pytest.mark.parametrize("place", ["engine.images.maps._mixed", "engine.tasks.image_segmentation._png"])
def test_masks_of_a_job_that_was_stopped_are_not_made(place: str, monkeypatch: pytest.MonkeyPatch):
    """An image may have minutes of them."""
    task = of("image-segmentation")(SMALL, Limits())
    request = task.parse({"image": picture(100, 100)})
    task.preprocess(request)
    module, _, name = place.rpartition(".")
    made, calls = getattr(sys.modules[module], name), []

    def stopped(*given: Any) -> Any:
        calls.append(given)
        request.spent.stop()
        return made(*given)

    monkeypatch.setattr(place, stopped)
    monkeypatch.setattr("engine.images.maps._AT_ONCE", 100)
    logits = np.random.default_rng(0).random((2, 8, 8), np.float32)
    with pytest.raises(InvalidInput, match="^the job was stopped$"):
        task.postprocess(request, [{"logits": logits}])
    assert len(calls) == 1


def test_windows_of_a_text(text_bundle: Any, monkeypatch: pytest.MonkeyPatch):
    """A job of too many is refused before one is made."""
    context = "a " * 3000
    answering = of("question-answering").from_bundle(text_bundle, Limits(max_queued_rows=500))
    answering.preprocess(answering.parse({"question": "b", "context": context}))
    naming = of("token-classification").from_bundle(text_bundle, Limits(max_queued_rows=500))
    several = {"stride": 8, "aggregation_strategy": "simple"}
    naming.preprocess(naming.parse({"texts": [context], **several}))
    with monkeypatch.context() as patch:
        patch.delattr(Tokens, "_window")
        assert "MAX_QUEUED_ROWS" in refusal(answering, {"question": ["b"] * 10, "context": context})
        assert "MAX_QUEUED_ROWS" in refusal(naming, {"texts": [context] * 10, **several})
    with pytest.raises(InvalidInput, match="windows of 30 tokens that overlap by 29 hold the text more than 16 times"):
        naming.tokens.windows(naming.tokens.read("a " * 99_999), 29, free=Free())


@pytest.mark.parametrize("is_counted", [False, True], ids=["when they are made", "before one is"])
def test_windows_of_short_texts(text_bundle: Any, monkeypatch: pytest.MonkeyPatch, is_counted: bool):
    """Those of one job together may overlap as they like."""
    naming = of("token-classification").from_bundle(text_bundle, Limits())
    answering = of("question-answering").from_bundle(text_bundle, Limits())
    text = "a " * 100  # of which 71 windows hold 30 each, or 31 behind a question of one
    jobs: list[tuple[Any, Any, Any]] = [
        (naming, lambda count: {"texts": [text] * count, "stride": 29, "aggregation_strategy": "simple"}, "stride"),
        (answering, lambda count: {"question": ["b"] * count, "context": text, "doc_stride": 30}, "doc_stride"),
    ]
    monkeypatch.setattr("engine.text.tokens._FREE_TOKENS", 3 * 71 * 31)
    for task, payload, field in jobs:
        request = task.parse(payload(9))
        assert [len(task.preprocess(part)) > 69 * 3 for part in task.split(request, 3)] == [True] * 3
        with monkeypatch.context() as patch:
            if is_counted:
                patch.setattr(task, "limits", Limits(max_queued_rows=9 * 71))
                patch.delattr(Tokens, "_window")
            assert f"hold the text more than 16 times over; lower `{field}`" in refusal(task, payload(4))
    plain = naming.parse({"texts": [text] * 9, "stride": 25, "aggregation_strategy": "simple"})
    assert len(naming.preprocess(plain)) == 9 * 15


def test_spans_of_many_windows(text_bundle: Any, monkeypatch: pytest.MonkeyPatch):
    """Of one context; refused before its windows are made."""
    answering = of("question-answering").from_bundle(text_bundle, Limits())
    monkeypatch.setattr("engine.tasks.question_answering._MOST_SPANS", 110 * 235)
    payload = {"question": ["b"] * 2, "context": "a " * 1200, "doc_stride": 26, "top_k": 50}
    assert len(answering.preprocess(answering.parse(payload))) == 2 * 235
    answering.preprocess(answering.parse({**payload, "top_k": 1000, "max_answer_len": 3}))  # there are no more
    monkeypatch.delattr(Tokens, "_window")
    assert refusal(answering, {**payload, "top_k": 51}) == (
        "`top_k` 51 of 235 windows of one context is too much to compare; lower `top_k` or `doc_stride`"
    )


def speech(limits: Limits) -> Any:
    return of("automatic-speech-recognition")(SPEECH, limits)
