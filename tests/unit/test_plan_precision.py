"""The check of half precision before anything is built: with a GPU to come, and without one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from engine.bundle import Graph, open_bundle, write_manifest
from export.bundle_folder import changed_bundle_folder
from export.errors import ParityFailed
from export.plans.precision import add_precision, check_without_gpu
from export.plans.recipe import PlanRecipe
from export.precision.rounded import rounded
from tests.bundles import overflowing


def content(bundle: Path) -> dict[str, bytes]:
    return {str(path.relative_to(bundle.parent)): path.read_bytes() for path in bundle.parent.rglob("*.*")}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_rounding_finds_what_overflows_and_bf16_does_not(small_bundle: Path, precision: str):
    overflowing(small_bundle)
    with changed_bundle_folder(small_bundle) as folder:
        if precision == "bf16":
            add_precision(folder, "model", precision, rounding=True)
        else:
            with pytest.raises(ParityFailed, match="outputs in fp16 differ from fp32 on the CPU"):
                add_precision(folder, "model", precision, rounding=True)
            shutil.rmtree(folder)
            shutil.copytree(small_bundle, folder)
            add_precision(folder, "model", precision)  # what ONNX Runtime makes of it, until a GPU has the word
    bundle = open_bundle(small_bundle)
    bundle.verify()
    assert sorted(bundle.manifest.graphs["model"].onnx) == sorted(["fp32", precision])
    assert not [name for name in bundle.manifest.files if "rounded" in name]
    figures = json.loads((small_bundle / "parity.json").read_text())["graphs"][f"graphs/model/{precision}.onnx"]
    assert figures["min_cosine"] >= 0.999


@pytest.mark.parametrize("rounding", [True, False])
def test_sums_and_squares_are_fp32_where_all_in_half_fails(
    small_bundle: Path, capsys: pytest.CaptureFixture[str], rounding: bool
):
    with changed_bundle_folder(small_bundle) as folder:
        assert add_precision(folder, "model", "fp16", rounding=rounding) == "half"
        assert add_precision(folder, "model", "fp16", rounding=rounding) == ""  # it is there
    overflowing(small_bundle, square=True)
    before = content(small_bundle)
    with pytest.raises(ParityFailed), changed_bundle_folder(small_bundle) as folder:
        add_precision(folder, "model", "fp16", "half", rounding=True)
    assert content(small_bundle) == before
    with changed_bundle_folder(small_bundle) as folder:
        (folder / "graphs/model/fp16.onnx").unlink()
        write_manifest(folder, replace(open_bundle(folder).manifest, graphs=without_fp16(folder)))
        assert add_precision(folder, "model", "fp16", rounding=rounding) == "sums"
    assert "all of it in half fails the gate" in capsys.readouterr().out
    open_bundle(small_bundle).verify()


def without_fp16(folder: Path) -> dict[str, Graph]:
    graph = open_bundle(folder).manifest.graphs["model"]
    return {"model": replace(graph, onnx={"fp32": graph.onnx["fp32"]})}


def test_a_check_without_a_gpu_changes_nothing(small_bundle: Path):
    before = content(small_bundle)
    check_without_gpu(small_bundle, PlanRecipe())
    check_without_gpu(small_bundle, PlanRecipe("fp32"))
    assert content(small_bundle) == before
    overflowing(small_bundle)
    before = content(small_bundle)
    with pytest.raises(ParityFailed):
        check_without_gpu(small_bundle, PlanRecipe())
    check_without_gpu(small_bundle, PlanRecipe("bf16"))
    assert content(small_bundle) == before


def test_rounding_shows_what_onnx_runtime_hides(tmp_path: Path):
    """A square that fp16 has no number for, with a root behind it."""
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["h"], to=half),
            helper.make_node("Mul", ["h", "h"], ["p"]),
            helper.make_node("Sqrt", ["p"], ["s"]),
            helper.make_node("Cast", ["s"], ["y"], to=single),
        ],
        "g",
        [helper.make_tensor_value_info("x", single, ["n"])],
        [helper.make_tensor_value_info("y", single, ["n"])],
    )
    path = tmp_path / "fp16.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    session = ort.InferenceSession(str(rounded(path, tmp_path / "rounded.onnx")))
    (y,) = session.run(None, {"x": np.array([3.14159, 400], np.float32)})
    assert y[0] == pytest.approx(3.14, abs=2e-3)
    assert np.float32(np.float16(y[0])) == y[0]
    assert not np.isfinite(y[1])
