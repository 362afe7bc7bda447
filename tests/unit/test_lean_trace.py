"""Weights that go past the exporter into files: the graph is the same, and so are they."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from export.tracing.lean_trace import release, weights_outside

VALUES = torch.rand(2, 40, generator=torch.Generator().manual_seed(0))


class Model(torch.nn.Module):
    """A weight that is used twice and folded (transposed), and small ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(40, 40), torch.nn.Linear(40, 40, bias=False)
        self.second.weight = self.first.weight

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(values))) + 1


def export(path: Path) -> None:
    options = {"input_names": ["values"], "output_names": ["found"], "dynamic_axes": {"values": {0: "batch"}}}
    torch.onnx.export(Model(), (VALUES,), str(path), opset_version=17, dynamo=False, **options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_graph_is_the_one_that_the_exporter_makes(tmp_path: Path):
    export(tmp_path / "whole.onnx")
    before = torch.onnx.export, torch._C._jit_pass_onnx_deduplicate_initializers
    with weights_outside():
        export(tmp_path / "lean.onnx")
    assert (torch.onnx.export, torch._C._jit_pass_onnx_deduplicate_initializers) == before
    whole, lean = (onnx.load(tmp_path / f"{name}.onnx") for name in ("whole", "lean"))
    assert list(whole.graph.node) == list(lean.graph.node)
    assert [one.name for one in lean.graph.input] == ["values"]
    weights = [{one.name: numpy_helper.to_array(one) for one in model.graph.initializer} for model in (whole, lean)]
    assert set(weights[0]) == set(weights[1])
    for name, expected in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], expected, strict=True)
    large = [values.nbytes for values in weights[0].values() if values.nbytes > 1024]
    assert sorted(file.stat().st_size for file in tmp_path.glob("lean.onnx.*.weights")) == sorted(large) != []
    assert (tmp_path / "lean.onnx").stat().st_size < 40 * 40 * 4
    session = ort.InferenceSession(tmp_path / "lean.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"values": VALUES.numpy()})
    np.testing.assert_allclose(found, Model()(VALUES).detach().numpy(), atol=1e-5)


def test_what_fails_leaves_the_exporter_as_it_was(tmp_path: Path):
    before = torch.onnx.export
    with pytest.raises(ZeroDivisionError), weights_outside():
        raise ZeroDivisionError
    assert torch.onnx.export is before


def test_small_models_are_not_looked_for(monkeypatch: pytest.MonkeyPatch):
    collected: list[int] = []
    monkeypatch.setattr("gc.collect", lambda: collected.append(1))
    release(10_000_000)
    assert not collected
    release(200_000_000)
    assert collected == [1]
