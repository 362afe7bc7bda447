"""Tracing with torch's exporter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export.errors import Refused
from export.exporters import trace_module
from export.tracing.torch_onnx import Traced, trace

SOURCE: Any = SimpleNamespace(
    model="m", architecture="A", exporter="torchscript", task=SimpleNamespace(traces_itself=True)
)
VALUES = torch.rand(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))


class Pools(torch.nn.Module):
    """Pools as pyramids have them, whose shares overlap, and a whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = [torch.nn.AdaptiveAvgPool2d(size) for size in (1, 2, 3, 6, (2, None))]

    def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = {f"pool{number}": pool(values) for number, pool in enumerate(self.pools)}
        return {**pooled, "best": values.flatten(1).argmax(1)}


def test_adaptive_pools_and_integers(tmp_path: Path):
    before = torch.nn.AdaptiveAvgPool2d.forward
    path = trace(SOURCE, Traced(Pools(), [("values", "float32", ("batch", 3, 7, 5), VALUES)]), tmp_path / "m.onnx")
    assert torch.nn.AdaptiveAvgPool2d.forward is before
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (VALUES, VALUES[:1], VALUES.repeat(3, 1, 1, 1)):
        expected = Pools()(batch)
        for name, found in zip(expected, session.run(None, {"values": batch.numpy()}), strict=True):
            np.testing.assert_allclose(found, expected[name].numpy(), atol=1e-6)
            assert found.dtype == (np.int32 if name == "best" else np.float32)
    (info,) = (one for one in onnx.load(path).graph.output if one.name == "pool4")
    assert [axis.dim_param or axis.dim_value for axis in info.type.tensor_type.shape.dim] == ["batch", 3, 2, 5]


class Folded(torch.nn.Module):
    """Patches that do not overlap side by side, as in MobileViTv2, and some that do."""

    def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        patches = values.flatten(1, 2)[:, :12, :4]
        return {"image": torch.nn.functional.fold(patches, output_size=(4, 6), kernel_size=(2, 3), stride=(2, 3))}


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_patches_side_by_side(tmp_path: Path, exporter: str):
    traced = Traced(Folded(), [("values", "float32", ("batch", 3, 7, 5), VALUES)])
    source: Any = SimpleNamespace(**{**vars(SOURCE), "exporter": exporter})
    path = trace_module(source, traced, tmp_path / "m.onnx")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"values": VALUES.numpy()})
    np.testing.assert_allclose(found, Folded()(VALUES)["image"].numpy(), atol=1e-6)


class Resized(torch.nn.Module):
    """Pools with kernels larger and smaller than the map, antialiasing, a normalisation by what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.over_all = torch.nn.AvgPool2d(16, ceil_mode=True)
        self.over_some = torch.nn.AvgPool2d(2)

    def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        def sized(height: int, width: int, mode: str) -> torch.Tensor:
            return torch.nn.functional.interpolate(
                values, size=(height, width), mode=mode, align_corners=False, antialias=True
            )

        return {
            "standardised": torch.nn.functional.batch_norm(values[:, :2], None, None, training=True, eps=1e-6),
            "all": self.over_all(values),
            "some": self.over_some(values),
            "smaller": sized(3, 2, "bicubic"),
            "larger": sized(9, 11, "bilinear"),
        }


def test_pools_over_everything_and_antialiased_resizing(tmp_path: Path):
    functions = torch.nn.functional
    before = torch.nn.AvgPool2d.forward, functions.interpolate, functions.batch_norm
    expected = Resized()(VALUES)
    path = trace(SOURCE, Traced(Resized(), [("values", "float32", ("batch", 3, 7, 5), VALUES)]), tmp_path / "m.onnx")
    assert (torch.nn.AvgPool2d.forward, functions.interpolate, functions.batch_norm) == before
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for name, found in zip(expected, session.run(None, {"values": VALUES.numpy()}), strict=True):
        np.testing.assert_allclose(found, expected[name].numpy(), atol=1e-5, err_msg=name)


def test_what_cannot_be_traced_is_refused_in_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    class Eigenvalues(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"found": torch.linalg.eigvalsh(values @ values.transpose(-1, -2))}

    traced = Traced(Eigenvalues(), [("values", "float32", ("batch", 3, 7, 5), VALUES)])
    with pytest.raises(
        Refused, match="m \\(A\\) cannot be traced by torchscript: Exporting the operator 'aten::linalg_eigvalsh'"
    ):
        trace(SOURCE, traced, tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")
