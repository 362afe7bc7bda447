"""Small payloads that would become gigabytes, or weeks of work, before an engine or a queue refuses them."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from engine.audio.example import recording
from engine.bundle import open_bundle
from engine.config import Limits
from engine.errors import InvalidInput
from engine.images.task import ImageTask
from engine.tasks.automatic_speech_recognition import AutomaticSpeechRecognition
from engine.tasks.image_transform import ImageTransform
from engine.tasks.question_answering import QuestionAnswering
from engine.tasks.token_classification import TokenClassification
from engine.tasks.zero_shot_classification import ZeroShotClassification
from engine.tasks.zero_shot_image_classification import ZeroShotImageClassification
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
    assert said == "`hypothesis_template` with a label has up to 501000 characters, allowed are 1000"


def test_windows_of_a_text(text_bundle: Any):
    context = "a " * 3000
    answering = QuestionAnswering.from_bundle(text_bundle, Limits(max_queued_rows=500))
    answering.preprocess(answering.parse({"question": "b", "context": context}))
    payload = {"question": ["b"] * 10, "context": context}
    assert "MAX_QUEUED_ROWS" in refusal(answering, payload)
    naming = TokenClassification.from_bundle(text_bundle, Limits(max_queued_rows=500))
    assert "MAX_QUEUED_ROWS" in refusal(
        naming, {"texts": [context] * 10, "stride": 8, "aggregation_strategy": "simple"}
    )
    with pytest.raises(InvalidInput, match="windows of 30 tokens that overlap by 29 hold the text more than 16 times"):
        naming.tokens.windows(naming.tokens.read("a " * 99_999), 29)


def speech(limits: Limits) -> AutomaticSpeechRecognition:
    return AutomaticSpeechRecognition(SPEECH, limits)
