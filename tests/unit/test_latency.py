"""`python -m benchmarks latency` and `gpu`: run for real on the CPU; tables and goals from given figures."""

from __future__ import annotations

import argparse
import json
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import benchmarks.gpu
from benchmarks import latency, results_file
from benchmarks.__main__ import main
from benchmarks.bert_bundle import bert_bundle, text_of
from benchmarks.bert_graph import SHAPES, Shape
from benchmarks.engine_times import Took
from benchmarks.gpu import Step, run, steps_of
from benchmarks.latency_table import goals, measurements, table
from benchmarks.results_file import Results
from benchmarks.shapes import Found
from engine.bundle import open_bundle
from engine.probe import gpu
from engine.tasks import load_task
from tests.processes import wait_until_dead

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
        assert len(found.ratios(one)) == (0 if one.target == "floor" else 1)
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
    assert "torch-eager is left out: " in capsys.readouterr().err
    targets = {one.target for one in results_file.read(tmp_path / "latency.json").measurements}
    assert targets == {"ours", "ours-handler", "floor"}


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
    assert said.splitlines()[-1] == "OPEN    minilm: no figures"
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


def test_goals_say_which_are_met():
    rows = [
        row(alone=0.4, copies=0.5, handler=0.7, torch_compile=0.9),
        row(batch=32, copies=2.0, torch_compile=2.5),
        row(batch=8, copies=2.0, torch_compile=1.0),  # no goal
    ]
    assert goals(results(*rows)) == [
        "met     bert-base, 128 tokens, batch 1: engine 0.4 ms, at most 0.5 (of an H200)",
        "MISSED  bert-base, 128 tokens, batch 1: copies and handler add 0.3 ms, at most 0.25",
        "MISSED  bert-base, 128 tokens, batch 1: 1.8x as fast as torch.compile, at least 2x",
        "met     bert-base, 128 tokens, batch 32: 1.25x as fast as torch.compile, at least 1x",
    ]
    assert goals(results(row("minilm", 16, 1, copies=1.0))) == []
    half = results(row(ours_fp16_alone=0.4, ours_fp16=0.5, ours_fp16_handler=0.7, torch_compile=0.9))
    assert goals(half) == goals(results(rows[0]))
    assert table(half, []) == table(results(rows[0]), [])


# benchmarks gpu


def asked(tmp_path: Path, **changes: Any) -> argparse.Namespace:
    fields: dict[str, Any] = {
        "out": tmp_path / "out",
        "work": tmp_path / "work",
        "steps": ["smoke", "tests", "coldstart", "latency"],
        "smoke": None,
        "torch_python": None,
        "latency_options": "--models minilm",
        "plan_options": "--no-library-tactics",
        "coldstart_options": "--runs 3",
        "test_options": "-k 'not boot'",
        "limit_s": 60.0,
    }
    return argparse.Namespace(**{**fields, **changes})


def test_steps_are_those_asked_for(tmp_path: Path):
    steps = steps_of(asked(tmp_path))
    assert [step.name for step in steps] == ["tests", "coldstart", "latency"]
    assert list(steps[0].command[-2:]) == ["-k", "not boot"]
    assert "--runs 3" in " ".join(steps[1].command)
    assert list(steps[2].command[-2:]) == ["--models", "minilm"]
    with_smoke = steps_of(asked(tmp_path, smoke=Path("smoke.py"), torch_python="/usr/bin/python3"))
    assert [step.name for step in with_smoke] == ["smoke", "tests", "coldstart", "latency"]
    assert with_smoke[0].command[1:] == ["smoke.py"]
    assert list(with_smoke[3].command[-2:]) == ["--torch-python", "/usr/bin/python3"]


def test_options_for_a_step_are_taken_apart_as_a_shell_does(tmp_path: Path):
    given = dict.fromkeys(("plan_options", "latency_options", "coldstart_options", "test_options"), "--x 'a b'")
    steps = steps_of(asked(tmp_path, steps=["plan", "tests", "coldstart", "latency"], **given))
    assert len(steps) == 4
    for step in steps:
        assert step.command[step.command.index("--x") + 1] == "a b", step.name


def test_a_step_that_takes_too_long_ends_with_all_that_it_started(tmp_path: Path):
    step = Step("slow", ["sh", "-c", "echo begun; sleep 60 & echo $!; wait"])
    run(step, tmp_path / "slow.log", 0.5)
    assert step.exit_code == 124
    lines = (tmp_path / "slow.log").read_text().split("\n")
    assert lines[1] == "begun"
    wait_until_dead(int(lines[2]))


def test_all_steps_end_within_the_total_and_one_without_its_bundle_ends_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from engine.probe import Gpu

    def no_bundle(*arguments: object) -> Path:
        raise OSError("no space left on device")

    for module in ("benchmarks.gpu", "benchmarks.machine"):
        monkeypatch.setattr(f"{module}.gpu", lambda: Gpu("NVIDIA L4", (8, 9)))
    monkeypatch.setattr(benchmarks.gpu, "bert_bundle", no_bundle)
    steps = [Step("plan", ["true"]), Step("smoke", ["sleep", "60"]), Step("tests", ["true"])]
    monkeypatch.setattr(benchmarks.gpu, "steps_of", lambda args: steps)
    begin = time.perf_counter()
    assert main(["gpu", "--out", str(tmp_path), "--total-s", "0.5", "--torch-python", "none"]) == 1
    assert time.perf_counter() - begin < 30
    summary = json.loads((tmp_path / "gpu.json").read_text())
    assert [(step["name"], step["exit_code"]) for step in summary["steps"]] == [
        ("plan", 1),
        ("smoke", 124),
        ("tests", 124),
    ]
    assert "no space left on device" in (tmp_path / "plan.log").read_text()
    assert "not begun" in (tmp_path / "tests.log").read_text()


def test_the_summary_has_the_machine_and_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from engine.probe import Gpu

    found = Gpu("NVIDIA L4", (8, 9), "550.54.15", "12.4")
    monkeypatch.setattr(benchmarks.gpu, "gpu", lambda: found)
    monkeypatch.setattr("benchmarks.machine.gpu", lambda: found)
    steps = [Step("good", ["true"]), Step("bad", ["false"])]
    monkeypatch.setattr(benchmarks.gpu, "steps_of", lambda args: steps)
    options = ["--out", str(tmp_path), "--torch-python", "none"]
    assert main(["gpu", *options]) == 1
    summary = json.loads((tmp_path / "gpu.json").read_text())
    assert [(step["name"], step["exit_code"]) for step in summary["steps"]] == [("good", 0), ("bad", 1)]
    machine = summary["machine"]
    assert (machine["gpu"], machine["driver"], machine["cuda"]) == ("NVIDIA L4", "550.54.15", "12.4")
    assert "bad ... exit code 1" in capsys.readouterr().out
    monkeypatch.setattr(benchmarks.gpu, "steps_of", lambda args: [Step("bad", ["true"])])
    assert main(["gpu", *options]) == 0
    summary = json.loads((tmp_path / "gpu.json").read_text())
    assert [(step["name"], step["exit_code"]) for step in summary["steps"]] == [("good", 0), ("bad", 0)]


@pytest.mark.parametrize(
    ("script", "told", "torch"),
    [
        ("echo 2.13.0+cpu False", "has torch 2.13.0+cpu, which sees no GPU; name a Python that has torch for", "none"),
        ("echo No module >&2; exit 1", "cannot import torch (No module); name a Python", "none"),
        ("echo 2.13.0+cu126 True", "", "python"),
    ],
)
def test_a_torch_that_is_not_on_the_gpu_is_told_before_anything_is_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    told: str,
    torch: str,
):
    from engine.probe import Gpu

    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    commands: list[str] = []
    for module in ("benchmarks.gpu", "benchmarks.machine"):
        monkeypatch.setattr(f"{module}.gpu", lambda: Gpu("NVIDIA L4", (8, 9)))
    monkeypatch.setattr(benchmarks.gpu, "_bundle_is_there", lambda *_: True)
    monkeypatch.setattr(benchmarks.gpu, "run", lambda step, *_: commands.append(" ".join(step.command)))
    main(["gpu", "--out", str(tmp_path / "o"), "--steps", "latency,throughput", "--torch-python", str(python)])
    assert told in capsys.readouterr().err
    assert len(commands) == 2
    assert all(command.split("--torch-python ")[1].endswith(torch) for command in commands)
