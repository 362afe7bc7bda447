"""Small payloads that would become gigabytes, or weeks of work, before an engine or a queue refuses them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.audio.example import recording
from engine.bundle import open_bundle
from engine.config import Limits
from engine.errors import InvalidInput
from engine.images.task import ImageTask
from engine.tasks.automatic_speech_recognition import AutomaticSpeechRecognition
from engine.tasks.depth_estimation import DepthEstimation
from engine.tasks.image_segmentation import ImageSegmentation
from engine.tasks.image_transform import ImageTransform
from engine.tasks.question_answering import QuestionAnswering
from engine.tasks.token_classification import TokenClassification
from engine.tasks.zero_shot_classification import ZeroShotClassification
from engine.tasks.zero_shot_image_classification import ZeroShotImageClassification
from engine.text.tokens import Tokens
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
    transform = ImageTransform(Limits(max_row_bytes=100))
    assert "MAX_ROW_BYTES" in refusal(transform, {"images": [IMAGE] * 2, "width": 100, "format": "png"})


def picture(width: int, height: int) -> str:
    content = io.BytesIO()
    Image.new("1", (width, height)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


SMALL = {"image": {"height": 8, "width": 8, "resize": "exact", "size": (8, 8)}, "labels": ["sky", "sea"]}
TOO_LARGE = "the reply would have more than 100000000 bytes; send fewer images, or smaller ones"


@pytest.mark.parametrize(("kind", "pixels"), [("base64", 18_750_000), ("float", 10_000_000)])
def test_depths_of_images_of_a_few_kilobytes(kind: str, pixels: int):
    """Refused before the engine runs."""
    task = DepthEstimation(SMALL, Limits())
    half = picture(5000, pixels // 10_000)
    payload = {"images": [half] * 2, "predicted_depth": kind}
    task.preprocess(task.parse(payload))
    assert refusal(task, {**payload, "images": [half, half, IMAGE]}) == TOO_LARGE
    task.preprocess(task.parse({**payload, "images": [half, half, IMAGE], "predicted_depth": "none"}))


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (DepthEstimation, {}),
        (ImageSegmentation, {}),
        (ImageSegmentation, {"mask_format": "rle"}),
    ],
)
def test_pictures_of_images_of_a_few_kilobytes(task: Any, options: Any, monkeypatch: pytest.MonkeyPatch):
    """How large a picture is, or a mask, is told when it is made: no more are made than the reply may hold."""
    made = 0

    class Counted(task):
        def answer(self, *given: Any) -> Any:
            nonlocal made
            made += 1
            return super().answer(*given)

    outputs = {
        "predicted_depth": np.random.default_rng(0).random((8, 8), np.float32),
        "logits": np.random.default_rng(1).random((2, 8, 8), np.float32),
    }
    counted = Counted(SMALL, Limits())
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


def test_texts_times_labels(text_bundle: Any):
    task = ZeroShotClassification.from_bundle(text_bundle, Limits(max_queued_rows=99))
    payload = {"texts": ["a"] * 10, "candidate_labels": ["b"] * 10}
    assert refusal(task, payload) == (
        "the job makes more than 99 rows, as many as may wait (MAX_QUEUED_ROWS); split it"
    )


def test_a_label_in_a_thousand_places(text_bundle: Any):
    task = ZeroShotImageClassification({"image": {"height": 8, "width": 8}}, Limits(max_chars=1000), None, ())  # type: ignore[arg-type]
    payload = {"image": IMAGE, "candidate_labels": ["a" * 1000], "hypothesis_template": "{}" * 500}
    said = refusal(task, payload)
    assert said == "`hypothesis_template` with a label has up to 500000 characters, allowed are 1000"


def test_windows_of_a_text(text_bundle: Any, monkeypatch: pytest.MonkeyPatch):
    """A job of too many is refused before one is made."""
    context = "a " * 3000
    answering = QuestionAnswering.from_bundle(text_bundle, Limits(max_queued_rows=500))
    answering.preprocess(answering.parse({"question": "b", "context": context}))
    naming = TokenClassification.from_bundle(text_bundle, Limits(max_queued_rows=500))
    several = {"stride": 8, "aggregation_strategy": "simple"}
    naming.preprocess(naming.parse({"texts": [context], **several}))
    with monkeypatch.context() as patch:
        patch.delattr(Tokens, "_window")
        assert "MAX_QUEUED_ROWS" in refusal(answering, {"question": ["b"] * 10, "context": context})
        assert "MAX_QUEUED_ROWS" in refusal(naming, {"texts": [context] * 10, **several})
    with pytest.raises(InvalidInput, match="windows of 30 tokens that overlap by 29 hold the text more than 16 times"):
        naming.tokens.windows(naming.tokens.read("a " * 99_999), 29)


def speech(limits: Limits) -> AutomaticSpeechRecognition:
    return AutomaticSpeechRecognition(SPEECH, limits)
