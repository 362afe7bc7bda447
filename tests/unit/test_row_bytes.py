"""What the rows of a job and their outputs may hold together, which is asked before any of them runs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engine.bundle import Graph, open_bundle
from engine.config import Limits
from engine.errors import InvalidInput
from engine.tasks import TASKS, task_class
from engine.tensors import TensorSpec
from tests.bundles import MAX_LENGTH, write_small_bundle

_TEXT = (
    TensorSpec("input_ids", "int32", ("batch", "length")),
    TensorSpec("attention_mask", "int32", ("batch", "length")),
)
_OF_TEXT = 2 * 4 * 5  # input_ids and attention_mask of three words and two special tokens
_PIXELS = 8 * 8 * 3
_CONTENT = io.BytesIO()
Image.new("RGB", (1, 1)).save(_CONTENT, "PNG")
_IMAGE = base64.b64encode(_CONTENT.getvalue()).decode()
_ON_IMAGES = {"image": {"height": 8, "width": 8, "resize": "exact", "size": (8, 8)}, "labels": ["sky", "sea"]}
_ON_TEXTS = {"normalize": True, "dimension": 8, "max_length": MAX_LENGTH, "labels": ["O", "B-X"], "unk_token_id": None}


@pytest.mark.parametrize(
    ("tag", "output", "of_a_row", "what"),
    [
        ("sparse-encoder", TensorSpec("weights", "float32", ("batch", 30_000)), 120_000 + _OF_TEXT, "the job's rows"),
        ("feature-extraction", TensorSpec("embedding", "float16", ("batch", 8)), 16 + _OF_TEXT, "the job's rows"),
        (
            "token-classification",
            TensorSpec("logits", "float32", ("batch", "length", 2)),
            5 * 8 + _OF_TEXT,
            "the job's rows",
        ),
        (
            "image-segmentation",
            TensorSpec("logits", "float32", ("batch", 2, 128, 128)),
            131_072 + _PIXELS,
            "`images[2]` and what is before it",
        ),
    ],
)
def test_outputs_count_beside_inputs(tmp_path: Path, tag: str, output: TensorSpec, of_a_row: int, what: str):
    if tag not in TASKS:
        pytest.skip(f"there is no {tag}")  # in a fork that has removed it
    on_texts = what == "the job's rows"
    graph = Graph(_TEXT if on_texts else (), (output,), {"fp32": "graphs/model/fp32.onnx"})
    config = _ON_TEXTS if on_texts else _ON_IMAGES
    bundle = open_bundle(write_small_bundle(tmp_path / "bundle", task=tag, task_config=config, graphs={"model": graph}))
    payload = {"texts": ["the quick fox"] * 3} if on_texts else {"images": [_IMAGE] * 3}

    def rows(most: int, *, in_parts_of: int = 3) -> int:
        task: Any = task_class(tag).from_bundle(bundle, Limits(max_row_bytes=most))
        parts = task.split(task.parse(payload), in_parts_of)
        return sum(len(task.preprocess(part)) for part in parts)

    assert rows(3 * of_a_row) == 3
    with pytest.raises(InvalidInput) as error:
        rows(3 * of_a_row - 1)
    assert str(error.value) == (
        f"{what} become more than {3 * of_a_row - 1} bytes for the engine and from it (MAX_ROW_BYTES); split the job"
    )
    assert rows(of_a_row, in_parts_of=1) == 3
