"""`throughput`, `accuracy` and `memory`: short runs for real on toy bundles, tables and errors."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks import accuracy, engines, memory, results_file, throughput
from benchmarks.__main__ import main
from benchmarks.bert_bundle import bert_bundle
from benchmarks.bert_graph import Shape
from benchmarks.engine_times import Took
from benchmarks.results_file import Results
from benchmarks.rounds import measurements
from benchmarks.shapes import Found
from engine.bundle import open_bundle, write_manifest
from engine.probe import Gpu
from tests.bundles import overflowing
from tests.plans import add_plan

SMALL = Shape(1, 32, 4, 64, vocab_size=500, max_position_embeddings=64)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_bundle("small", tmp_path_factory.mktemp("small") / "bundle", SMALL)


def test_a_small_grid(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "throughput.json"
    options = ["--bundle", str(bundle), "--batches", "1,4", "--lengths", "16,max", "--rounds", "2", "--duration", "0"]
    options += ["--percentile", "90"]
    assert main(["throughput", *options, "--warmUp", "0", "--torch-python", "none", "--json", str(out)]) == 0
    found = results_file.read(out)
    assert {one.target for one in found.measurements} == {"ours", "floor"}
    assert [one.point for one in found.measurements if (one.target, one.metric) == ("ours", "rows_per_s")] == [
        "batch 1, 16 tokens",
        "batch 4, 16 tokens",
        "batch 1, 64 tokens",
        "batch 4, 64 tokens",
    ]
    for one in found.measurements:
        assert len(one.repeats) == 2
        assert len(found.ratios(one)) == (2 if one.target == "ours" else 0)
    for target in ("ours", "floor"):
        p50, p90 = (found.find(("throughput", target, "batch 4, 64 tokens", name)) for name in ("p50_ms", "p90_ms"))
        assert p50 is not None and p90 is not None and 0 < p50.median <= p90.median
        assert p50.better == "lower"
    assert not [one for one in found.measurements if one.metric == "p99_ms"]
    said = capsys.readouterr().out
    assert "| batch 4, 64 tokens |" in said
    assert "| p50 / p90 ms " in said


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies of bundles go."""
    monkeypatch.setattr(engines, "BUILD", tmp_path / "build")
    return tmp_path / "build"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_first_precision_of_a_grid_is_not_taken_for_fp32(bundle: Path, tmp_path: Path, build: Path):
    """What the bundle has not is made in a copy: it is the user's, who asked for figures."""
    out, before = tmp_path / "throughput.json", contents(bundle)
    options = ["--bundle", str(bundle), "--precisions", "fp16,fp32", "--batches", "1", "--lengths", "16"]
    options += ["--rounds", "1", "--duration", "0", "--warmUp", "0", "--torch-python", "none", "--json", str(out)]
    assert main(["throughput", *options]) == 0
    found = results_file.read(out)
    assert list(dict.fromkeys(one.target for one in found.measurements)) == ["ours-fp16", "ours", "floor"]
    assert found.options["precisions"] == ["fp16", "fp32"]
    assert contents(bundle) == before
    (copy,) = (build / "precisions").iterdir()
    assert "fp16" in open_bundle(copy).manifest.graphs["model"].onnx


def test_a_precision_that_the_model_does_not_fit_is_a_sentence(
    small_bundle: Path, build: Path, capsys: pytest.CaptureFixture[str]
):
    """Weights for which it has no number."""
    overflowing(small_bundle)
    model = onnx.load(small_bundle / "graphs/model/fp32.onnx")
    (wider,) = (one for one in model.graph.initializer if one.name == "wider")
    wider.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(wider) * np.float32(1e6), "wider"))
    onnx.save(model, small_bundle / "graphs/model/fp32.onnx")
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    options = ["--engine", "onnxruntime-cpu", "--batches", "1", "--lengths", "16", "--precisions", "fp16"]
    assert main(["throughput", "--bundle", str(small_bundle), *options]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"throughput: {small_bundle} cannot be measured in fp16: ")
    assert not list(build.glob("precisions/*"))


def test_rates_are_of_runs_and_wall_time():
    """Two streams, each ten runs of 100 ms in one second: 20 runs a second."""
    found = Found({("ours", "batch 8, 16 tokens"): [Took([100.0] * 20, 1.0), None]})
    p50, rows = throughput.measurements(found, {"p50_ms": 50.0})
    assert p50.repeats == (100.0, None)
    assert rows.repeats == (160.0, None)
    assert rows.floor is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--lengths", "16,100"], "--lengths: the model takes 64 tokens at most, and 100 was asked for"),
        (["--streams", "2"], "--streams: no meaning for onnxruntime-cpu"),
        (
            ["--lengths", "16", "--precisions", "fp32,int8"],
            "has no int8 for onnxruntime-cpu; export it with --precision int8",
        ),
        (
            ["--lengths", "16", "--precisions", "fp32,bf16"],
            "onnxruntime-cpu cannot run bf16; take another precision, or --engine tensorrt on a GPU",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(
    bundle: Path, given: list[str], said: str, build: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["throughput", "--engine", "onnxruntime-cpu", "--bundle", str(bundle), *given]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["throughput", "accuracy"])
def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main([command, "--bundle", str(tmp_path / "none")])
    assert f"argument --bundle: {tmp_path / 'none'} is not a bundle" in capsys.readouterr().err


def test_a_precision_that_only_gpus_run_is_left_out_on_a_cpu(bundle: Path, tmp_path: Path):
    here = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    shutil.copy(here / "graphs/model/fp32.onnx", here / "graphs/model/bf16.onnx")
    manifest = open_bundle(here).manifest
    graph = manifest.graphs["model"]
    both = replace(graph, onnx={**graph.onnx, "bf16": "graphs/model/bf16.onnx"})
    write_manifest(here, replace(manifest, graphs={"model": both}))
    out = tmp_path / "accuracy.json"
    options = ["--engine", "onnxruntime-cpu", "--texts", "4", "--rounds", "1", "--json", str(out)]
    assert main(["accuracy", "--bundle", str(here), *options]) == 0
    assert {one.target for one in results_file.read(out).measurements} == {"ours", "floor"}


def test_accuracy_takes_of_a_bundle_what_the_engine_can_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As exported with int8 for the CPU, which is a fused graph alone: no plan is built of that."""
    here = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    manifest = open_bundle(here).manifest
    graph = manifest.graphs["model"]
    fused = replace(graph, fused={"fp32": graph.onnx["fp32"], "int8": graph.onnx["fp32"]})
    write_manifest(here, replace(manifest, precision="int8", graphs={"model": fused}))
    add_plan(here, precision="tf32")
    add_plan(here, precision="bf16", compute_capability="9.0")  # of another GPU
    monkeypatch.setattr(engines, "gpu", lambda: Gpu("NVIDIA L4", (8, 9)))
    monkeypatch.setattr(engines, "tensorrt_version", lambda: "10.13.0.35")
    assert engines.precisions_of(here, "onnxruntime-cpu") == ["fp32", "int8"]
    assert engines.precisions_of(here, "onnxruntime-cuda") == ["fp32", "fp16"]
    asked: list[str] = []

    def prepare(path: Path, engine: str, precision: str, *_: object) -> Path:
        asked.append(precision)
        if precision == "fp16":
            raise RuntimeError("enough")
        return path

    monkeypatch.setattr(engines, "prepare", prepare)
    monkeypatch.setattr(engines, "check", lambda engine, precision: None)  # there is no GPU
    assert main(["accuracy", "--engine", "tensorrt", "--bundle", str(here)]) == 2
    assert capsys.readouterr().err == "accuracy: enough\n"
    assert asked == ["fp32", "tf32", "fp16"]


def test_no_plan_is_built_where_a_later_precision_is_missing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(engines, "check", lambda engine, precision: None)
    monkeypatch.setattr(engines, "prepare", lambda *asked: pytest.fail("it went on"))
    options = ["--engine", "tensorrt", "--precisions", "fp16,int8"]
    assert main(["accuracy", *options, "--bundle", str(bundle)]) == 2
    assert capsys.readouterr().err == (
        f"accuracy: {bundle} has no int8 for tensorrt; export it with --precision tensorrt=int8\n"
    )


def test_accuracy_of_a_bundle(bundle: Path, tmp_path: Path, build: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "accuracy.json"
    options = ["--bundle", str(bundle), "--precisions", "fp32,fp16", "--texts", "20", "--rounds", "2"]
    assert main(["accuracy", *options, "--json", str(out)]) == 0
    found = results_file.read(out)
    assert {one.target for one in found.measurements} == {"ours", "ours-fp16", "floor"}

    def value(target: str, metric: str) -> float:
        one = found.find(("accuracy", target, "20 texts", metric))
        assert one is not None
        return one.median

    assert value("ours", "min_cosine") == pytest.approx(1.0, abs=1e-6)
    assert value("floor", "min_cosine") == pytest.approx(1.0, abs=1e-5)
    assert 0.99 < value("ours-fp16", "min_cosine") <= value("ours-fp16", "mean_cosine") < 1.0 + 1e-6
    assert value("ours-fp16", "rows_per_s") > 0
    assert "| ours-fp16 |" in capsys.readouterr().out


def test_texts_are_cut_to_what_the_model_takes(bundle: Path):
    rows = accuracy.token_rows(open_bundle(bundle), ["aaa", " ".join(["aab"] * 200)])
    assert [len(row) for row in rows] == [3, 64]


def test_the_worst_and_the_mean_cosine_are_of_the_same_round():
    one, other = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 1.0]])
    found = {"ours": [(10.0, one)], "ours-int8": [(20.0, other)]}
    by_key = {measured.key[1:]: measured.median for measured in accuracy.measurements(found, 2)}
    assert by_key["ours-int8", "2 texts", "min_cosine"] == pytest.approx(math.sqrt(0.5))
    assert by_key["ours-int8", "2 texts", "mean_cosine"] == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_memory_of_a_worker_that_boots_and_answers(small_bundle: Path, tmp_path: Path):
    out = tmp_path / "memory.json"
    options = ["--bundle", str(small_bundle), "--engine", "fake", "--jobs", "64", "--rounds", "1", "--json", str(out)]
    assert main(["memory", *options]) == 0
    found = results_file.read(out)
    points = {one.point for one in found.measurements}
    assert points == {"after boot", "after the first answer", "after 64 texts"}
    for one in found.measurements:
        assert one.repeats[0] is not None and 10 < one.repeats[0] < 2000
        pss = found.find((*one.key[:3], "pss_mb"))
        rss = found.find((*one.key[:3], "rss_mb"))
        assert pss is not None and rss is not None and pss.median <= rss.median


def test_memory_beside_ours():
    figures = {("ours", "after boot"): {"rss_mb": 100.0}, ("stock", "after boot"): {"rss_mb": 500.0}}
    lines = memory.table(Results({}, {}, measurements("memory", [figures]))).splitlines()
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["stock SDK + sentence-transformers", "500 (5x)"]


def test_device_memory_is_of_the_whole_tree():
    mine = os.getpid()
    assert memory.device_mb(mine, lambda: f"{mine}, 100\n1, 900\n") == pytest.approx(104.8576)
    assert memory.device_mb(mine, lambda: None) is None


@pytest.mark.parametrize("said", ["", "1, 900\n", "{pid}, [N/A]\n"])
def test_device_memory_that_the_driver_does_not_tell_is_no_figure(said: str):
    """As in a container, where it sees no processes."""
    assert memory.device_mb(os.getpid(), lambda: said.format(pid=os.getpid())) is None


def test_memory_of_nothing_is_no_multiple():
    figures = {(name, "after boot"): {"device_mb": mb} for name, mb in (("ours", 0.0), ("stock", 500.0))}
    assert "500 (-)" in memory.table(Results({}, {}, measurements("memory", [figures])))


def test_the_commands_are_listed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"    {name}" in said for name in ("accuracy", "memory", "throughput"))
