"""The arithmetic in front of a model, traced: uint8 pixels become the numbers that transformers' processor makes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image

from export.images import ImageExport, from_pixels, image_inputs
from export.tracing.torch_onnx import Traced, trace
from tests.unit.test_image_processor import PROCESSORS, found


class Pixels(ImageExport):
    """Whatever reaches the model leaves the graph."""

    def answer(self, source: Any, model: Any, values: Any) -> Any:
        return {name: value * 1 for name, value in values.items()}


@pytest.mark.parametrize("name", ["exact", "blue first", "canvas", "no scale", "shortest, then a larger crop"])
def test_numbers(tmp_path: Path, name: str):
    assert name in PROCESSORS
    processor = found(name)
    source: Any = SimpleNamespace(processor=processor, task=Pixels(), model="m", architecture="A")
    traced = Traced(from_pixels(source, torch.nn.Identity()), image_inputs(source))
    session = ort.InferenceSession(trace(source, traced, tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, (*size, 3), np.uint8)) for size in ((30, 50), (90, 40), (64, 64))]
    rows = [processor.geometry.feeds(image, "image", 1 << 30) for image in images]
    feeds = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, feeds), strict=True))
    for index, image in enumerate(images):
        expected = processor.inputs(image)
        assert set(names) == set(expected)
        for key, values in expected.items():
            wanted = values[0].numpy()
            np.testing.assert_allclose(outputs[key][index], wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
