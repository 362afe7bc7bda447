"""Embeddings of images, and of texts beside them, that RunPod's queue would not take: refused before they are made."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.bundle import Graph, open_bundle
from engine.config import Settings
from engine.errors import AnswerTooLarge
from engine.tasks import TASKS, load_task, task_class
from engine.tensors import TensorSpec
from handler.reply import encode
from tests.bundles import MAX_LENGTH, write_small_bundle

CONTENT = io.BytesIO()
Image.new("RGB", (1, 1)).save(CONTENT, "PNG")
IMAGE = base64.b64encode(CONTENT.getvalue()).decode()
IDS = TensorSpec("input_ids", "int32", ("batch", "length"))
CONFIG = {"image": {"height": 8, "width": 8, "resize": "exact", "size": (8, 8)}, "max_length": MAX_LENGTH}


def graph(inputs: tuple[TensorSpec, ...], *shape: int) -> Graph:
    outputs = (TensorSpec("embedding", "float32", ("batch", *shape)),)
    return Graph(inputs, outputs, {"fp32": "graphs/model/fp32.onnx"})


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
@pytest.mark.parametrize(
    ("tag", "graphs", "payload", "shape"),
    [
        ("image-feature-extraction", {"model": graph((), 16)}, {"images": [IMAGE] * 20}, (16,)),
        ("image-feature-extraction", {"model": graph((), 5, 16)}, {"images": [IMAGE] * 20}, (5, 16)),
        ("image-text-embedding", {"image": graph((), 16), "text": graph((IDS,), 4)}, {"images": [IMAGE] * 20}, (16,)),
        ("image-text-embedding", {"image": graph((), 4), "text": graph((IDS,), 16)}, {"texts": ["a"] * 20}, (16,)),
    ],
    ids=["images", "patches", "images beside texts", "texts beside images"],
)
def test_what_runpods_queue_does_not_take_is_refused_before_it_is_computed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tag: str,
    graphs: dict[str, Graph],
    payload: dict[str, Any],
    shape: tuple[int, ...],
    encoding_format: str,
):
    if tag not in TASKS:
        pytest.skip(f"there is no {tag}")  # in a fork that has removed it
    bundle = open_bundle(write_small_bundle(tmp_path / "bundle", task=tag, task_config=CONFIG, graphs=graphs))
    kind: Any = task_class(tag)
    queued, on_http = (kind.from_bundle(bundle, Settings(worker_loop=loop)) for loop in ("events", "http"))
    payload = {**payload, "encoding_format": encoding_format}
    request = queued.parse(payload)
    draw = np.random.default_rng(0)
    outputs = [{"embedding": draw.standard_normal(shape, np.float32)} for _ in queued.preprocess(request)]
    size = len(encode({"output": queued.postprocess(request, outputs)}))
    monkeypatch.setattr("engine.tasks.payload.LARGEST_REPLY", size // 3)
    things = "texts" if "texts" in payload else "images"
    base64_too = ", or ask for `encoding_format` base64" if encoding_format == "float" else ""
    with monkeypatch.context() as patch:
        patch.delattr("engine.tasks.media.each_bytes_of")  # nothing is fetched, nor made a row
        patch.setattr(queued, "tokens", None, raising=False)
        with pytest.raises(AnswerTooLarge) as error:
            queued.preprocess(queued.parse(payload))
    assert str(error.value).endswith(
        f" that RunPod takes; send fewer {things} at once{base64_too}, or ask for a `stream`"
    )
    assert size // 3 < error.value.size < size
    for part in queued.split(queued.parse(payload), 5):
        assert len(queued.preprocess(part)) == 5
    for task in (on_http, load_task(bundle)):  # the second as an export does
        assert len(task.preprocess(task.parse(payload))) == 20
    monkeypatch.setattr("engine.tasks.payload.LARGEST_REPLY", size)
    assert len(queued.preprocess(queued.parse(payload))) == 20


def test_feature_maps_of_zeros_are_refused_where_zeros_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if "image-feature-extraction" not in TASKS:
        pytest.skip("there is no image-feature-extraction")  # in a fork that has removed it
    graphs = {"model": graph((), 16)}
    folder = write_small_bundle(tmp_path / "b", task="image-feature-extraction", task_config=CONFIG, graphs=graphs)
    task: Any = task_class("image-feature-extraction").from_bundle(open_bundle(folder), Settings())
    request = task.parse({"images": [IMAGE] * 20})
    zeros = [{"embedding": np.zeros(16, np.float32)} for _ in task.preprocess(request)]
    size = len(encode({"output": task.postprocess(request, zeros)}))
    monkeypatch.setattr("engine.tasks.payload.LARGEST_REPLY", size)
    assert len(task.preprocess(request)) == 20
    monkeypatch.setattr("engine.tasks.payload.LARGEST_REPLY", 20 * 16 * 4 - 1)
    with pytest.raises(AnswerTooLarge):
        task.preprocess(request)
