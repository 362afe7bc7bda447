"""`python -m benchmarks latency`: run for real on the CPU; its table from given figures."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks import latency, results_file, shapes
from benchmarks.__main__ import main
from benchmarks.bert_bundle import bert_bundle, text_of
from benchmarks.bert_graph import SHAPES, Shape
from benchmarks.engine_times import Took
from benchmarks.latency_table import measurements, table
from benchmarks.results_file import Results
from benchmarks.shapes import Found
from benchmarks.targets.pipe import PipeProcess
from engine.bundle import open_bundle
from engine.probe import gpu
from engine.tasks import load_task

SMALL = Shape(1, 32, 4, 64, vocab_size=500, max_position_embeddings=64)


def row(model: str = "bert-base", seq: int = 128, batch: int = 1, **p50: float) -> Found:
    names = {"alone": "ours-alone", "copies": "ours", "handler": "ours-handler"}
    point = f"{model}, batch {batch}, {seq} tokens"
    took: dict[tuple[str, str], list[Took | None]] = {
        (names.get(name, name.replace("_", "-")), point): [Took([value], value / 1e3)] for name, value in p50.items()
    }
    return Found(took)


def results(*rows: Found) -> Results:
    found = [one for row in rows for one in measurements(row, {"p50_ms": 50.0, "p99_ms": 99.0})]
    return Results({}, {}, tuple(found))


@pytest.mark.parametrize("tokens", [2, 3, 16, 64])
def test_texts_have_the_number_of_tokens_that_was_asked_for(tmp_path: Path, tokens: int):
    task = load_task(open_bundle(bert_bundle("small", tmp_path / "bundle", SMALL)))
    rows = task.preprocess(task.parse({"texts": [text_of(tokens, seed) or "" for seed in (0, 1, 7)]}))
    assert [one.length for one in rows] == [tokens] * 3
    words = [one.feeds["input_ids"].tolist()[1:-1] for one in rows]
    assert all(word > 3 for one in words for word in one)  # no [UNK]
    assert tokens < 4 or words[0] != words[1]


def test_a_bundle_that_is_there_is_kept(tmp_path: Path):
    path = bert_bundle("small", tmp_path / "bundle", SMALL)
    before = (path / "manifest.json").stat().st_mtime_ns
    assert bert_bundle("small", path, SMALL) == path
    assert (path / "manifest.json").stat().st_mtime_ns == before
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(Exception, match="not empty"):
        bert_bundle("small", path, SMALL)


def test_latency_runs_on_the_cpu_beside_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(SHAPES, "minilm", SMALL)
    options = ["--cpu", "--models", "minilm", "--seq", "16", "--batch", "1,4", "--duration", "0.1", "--warmUp", "0"]
    options += ["--work", str(tmp_path / "work"), "--percentile", "99", "--exportTimes", str(tmp_path / "times.json")]
    assert main(["latency", *options, "--json", str(tmp_path / "latency.json")]) == 0
    found = results_file.read(tmp_path / "latency.json")
    assert (found.options["engine"], found.options["precision"]) == ("onnxruntime-cpu", "fp32")
    assert found.details == {"errors": {}}
    assert found.environment["versions"]["torch"] == metadata.version("torch")
    assert {one.target for one in found.measurements} == {"ours", "ours-handler", "floor", "torch-eager"}
    assert {one.point for one in found.measurements} == {f"minilm, batch {batch}, 16 tokens" for batch in (1, 4)}
    for one in found.measurements:
        p50, p99 = (found.find((*one.key[:3], metric)) for metric in ("p50_ms", "p99_ms"))
        assert p50 is not None and p99 is not None and 0 < p50.median <= p99.median
        assert len(found.ratios(one)) == (0 if one.target == "floor" else 3)
    times = json.loads((tmp_path / "times.json").read_text())
    assert len([one for one in times if one["target"] == "ours"]) >= 20  # ten iterations at least, at two points
    said = capsys.readouterr().out
    assert "| minilm | 16  | 1 " in said
    assert "T4 0.65, RTX 3090 0.45" in said


def test_what_torch_cannot_do_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A Python without torch, say."""
    monkeypatch.setitem(SHAPES, "minilm", SMALL)
    options = ["--engine", "onnxruntime-cpu", "--models", "minilm", "--seq", "16", "--batch", "1", "--duration", "0.1"]
    options += ["--torch-python", "/bin/false", "--work", str(tmp_path), "--json", str(tmp_path / "latency.json")]
    assert main(["latency", *options]) == 0
    said = capsys.readouterr().err
    assert "torch-eager is left out: " in said
    assert "torch-compile" not in said
    targets = {one.target for one in results_file.read(tmp_path / "latency.json").measurements}
    assert targets == {"ours", "ours-handler", "floor"}
    assert main(["latency", *options, "--torch-modes", "compile"]) == 0
    said = capsys.readouterr().err
    assert "torch-compile is left out: " in said
    assert "torch-eager" not in said


@pytest.mark.parametrize(
    ("precision", "name", "dtype", "products"),
    [
        ("fp32", "torch-eager", "torch.float32", "highest"),
        ("tf32", "torch-eager-tf32", "torch.float32", "high"),
        ("fp16", "torch-eager-fp16", "torch.float16", "highest"),
        ("bf16", "torch-eager-bf16", "torch.bfloat16", "highest"),
    ],
)
def test_torch_runs_in_the_precision_that_it_is_compared_with(precision: str, name: str, dtype: str, products: str):
    """As on a GPU; here its process is told the CPU."""
    made = shapes.torch(sys.executable, SMALL, ["eager"], "tensorrt", [precision])
    python, script, asked = made.pop(name)
    assert not made
    assert json.loads(asked)["device"] == "cuda"
    with PipeProcess([python, script, json.dumps({**json.loads(asked), "device": "cpu"})]) as process:
        assert (process.hello["dtype"], process.hello["float32_matmul_precision"]) == (dtype, products)
        assert process.ask({"batch": 2, "length": 8, "warm_up_ms": 0, "duration_s": 0, "iterations": 1})["ms"]


def test_torch_is_in_fp32_on_the_cpu_and_never_in_int8(capsys: pytest.CaptureFixture[str]):
    on_cpu = shapes.torch("python", SMALL, ["eager"], "onnxruntime-cpu", ["fp32", "int8"])
    assert list(on_cpu) == ["torch-eager"]
    assert {"device": "cpu", "precision": "fp32"}.items() <= json.loads(on_cpu["torch-eager"][-1]).items()
    assert not capsys.readouterr().err
    assert list(shapes.torch("python", SMALL, ["eager", "compile"], "tensorrt", ["int8", "fp16"])) == [
        "torch-eager-fp16",
        "torch-compile-fp16",
    ]
    assert "torch is left out beside int8, in which it does not run" in capsys.readouterr().err


def test_what_is_measured_is_named_by_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(SHAPES, "minilm", SMALL)
    options = ["--cpu", "--precision", "fp16", "--models", "minilm", "--seq", "16", "--batch", "1", "--duration", "0"]
    options += ["--warmUp", "0", "--torch-python", "none", "--work", str(tmp_path), "--json", str(tmp_path / "l.json")]
    assert main(["latency", *options]) == 0
    targets = {one.target for one in results_file.read(tmp_path / "l.json").measurements}
    assert targets == {"ours-fp16", "ours-fp16-handler", "floor"}
    said = capsys.readouterr().out
    assert "copies, p50" in said and "handler, p50" in said


@pytest.mark.skipif(gpu() is not None, reason="there is a GPU")
@pytest.mark.parametrize("engine", ["tensorrt", "onnxruntime-cuda"])
def test_without_a_gpu_its_engines_are_refused(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(SHAPES, "minilm", SMALL)
    lengths = ["--seq", "16"]
    assert main(["latency", "--engine", engine, "--models", "minilm", *lengths, "--work", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())
    assert "latency: no NVIDIA driver or no GPU here; take --engine onnxruntime-cpu" in capsys.readouterr().err


def test_a_run_in_which_nothing_worked_has_not_passed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    point = "minilm, batch 1, 16 tokens"
    broken = Found({("ours", point): [None]}, {f"ours, {point}": "the engine broke"})
    monkeypatch.setattr(latency, "measure", lambda model, args, switches: broken)
    assert main(["latency", "--cpu", "--torch-python", "none"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "latency: nothing could be measured; the engine broke"


def test_a_model_that_cannot_be_measured_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Something else stands where the first one's bundle goes."""
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "mine").touch()
    for model in ("minilm", "bert-base"):
        monkeypatch.setitem(SHAPES, model, SMALL)
    options = ["--cpu", "--seq", "16", "--batch", "1", "--duration", "0", "--warmUp", "0", "--torch-python", "none"]
    options += ["--work", str(tmp_path), "--json", str(tmp_path / "l.json")]
    assert main(["latency", *options, "--models", "minilm,bert-base"]) == 0
    found = results_file.read(tmp_path / "l.json")
    assert {one.point for one in found.measurements} == {"bert-base, batch 1, 16 tokens"}
    assert list(found.details["errors"]) == ["minilm"]
    assert "not empty" in found.details["errors"]["minilm"]
    said, told = capsys.readouterr()
    assert f"latency: minilm is left out: {found.details['errors']['minilm']}\n" in told
    assert "| bert-base | 16  | 1 " in said
    kept = (tmp_path / "l.json").read_bytes()
    assert main(["latency", *options, "--models", "minilm"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("latency: nothing could be measured; ")
    assert (tmp_path / "l.json").read_bytes() == kept


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--cpu", "--useSpinWait"], "--useSpinWait: no meaning for onnxruntime-cpu"),
        (["--cpu", "--seq", "16,9999"], "--seq: minilm takes 512 tokens at most, and 9999 was asked for"),
        (["--cpu", "--engine", "tensorrt"], "--cpu and --engine tensorrt exclude each other"),
    ],
)
def test_options_that_do_not_go_together(given: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["latency", *given]) == 2
    assert f"latency: {said}" in capsys.readouterr().err


def test_the_table_has_what_was_measured_beside_what_was_published():
    found = results(row(alone=0.4, copies=0.5, handler=0.6, torch_compile=1.5), row(batch=8, copies=1.0))
    published = [{"gpu": "L4", "model": "bert-base", "seq": 128, "batch": 1, "ms": 1.0}]
    header, _, first, second = table(found, published).splitlines()
    assert "torch eager" not in header
    assert "copies, p50 / p99 ms" in header
    assert [cell.strip() for cell in first.split("|")[4:-1]] == [
        "0.4 / 0.4",
        "0.5 / 0.5",
        "0.6 / 0.6",
        "1.5 / 1.5",
        "3x",
        "L4 1.0",
    ]
    assert [cell.strip() for cell in second.split("|")[4:-1]] == ["-", "1 / 1", "-", "-", "-", "-"]


def test_a_precision_in_the_names_changes_no_figure():
    half = results(row(ours_fp16_alone=0.4, ours_fp16=0.5, ours_fp16_handler=0.7, torch_compile_fp16=0.9))
    assert table(half, []) == table(results(row(alone=0.4, copies=0.5, handler=0.7, torch_compile=0.9)), [])
