"""`python -m benchmarks gpu`: its steps, their logs and their summary, with short commands in place of long ones."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import benchmarks.gpu
from benchmarks.__main__ import main
from benchmarks.gpu import STEPS, Step, run, steps_of
from engine.probe import Gpu
from tests.processes import wait_until_dead


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
        "load_options": "--rounds 1",
        "throughput_options": "--rounds 1",
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


def test_everything_of_the_bundle_comes_behind_its_plan(tmp_path: Path):
    steps = steps_of(asked(tmp_path, steps=list(STEPS)))
    names = [step.name for step in steps]
    commands = {step.name: " ".join(step.command) for step in steps}
    for name in ("coldstart", "load", "throughput"):
        assert names.index("plan") < names.index(name)
        assert f" {name} --bundle {tmp_path / 'work' / 'minilm'} --engine tensorrt" in commands[name]
        assert f"--json {tmp_path / 'out' / name}.json" in commands[name]


def test_options_for_a_step_are_taken_apart_as_a_shell_does(tmp_path: Path):
    steps = ["plan", "tests", "coldstart", "load", "latency", "throughput"]
    names = (f"{step.removesuffix('s')}_options" for step in steps)
    found = steps_of(asked(tmp_path, steps=steps, **dict.fromkeys(names, "--x 'a b'")))
    assert len(found) == 6
    for step in found:
        assert step.command[step.command.index("--x") + 1] == "a b", step.name


def test_a_step_that_takes_too_long_ends_with_all_that_it_started(tmp_path: Path):
    step = Step("slow", ["sh", "-c", "echo begun; sleep 60 & echo $!; wait"])
    run(step, tmp_path / "slow.log", 0.5)
    assert step.exit_code == 124
    lines = (tmp_path / "slow.log").read_text().split("\n")
    assert lines[1] == "begun"
    wait_until_dead(int(lines[2]))


def test_what_has_a_process_group_of_its_own_ends_as_well(tmp_path: Path):
    """As the engines have that `latency` measures: nothing may compute on the GPU beside the next step."""
    begun = "import subprocess as s; child = s.Popen(['sleep', '60'], process_group=0); print(child.pid, flush=True)"
    step = Step("slow", [sys.executable, "-c", f"{begun}; child.wait()"])
    run(step, tmp_path / "slow.log", 2)
    wait_until_dead(int((tmp_path / "slow.log").read_text().split("\n")[1]))


def test_all_steps_end_within_the_total_and_one_without_its_bundle_ends_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
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
    found = Gpu("NVIDIA L4", (8, 9), "550.54.15", "12.4")
    monkeypatch.setattr(benchmarks.gpu, "gpu", lambda: found)
    monkeypatch.setattr("benchmarks.machine.gpu", lambda: found)
    steps = [Step("good", ["true"]), Step("bad", ["sh", "-c", "seq 99; echo no kernel; false"])]
    monkeypatch.setattr(benchmarks.gpu, "steps_of", lambda args: steps)
    options = ["--out", str(tmp_path), "--torch-python", "none"]
    assert main(["gpu", *options]) == 1
    summary = json.loads((tmp_path / "gpu.json").read_text())
    assert [(step["name"], step["exit_code"]) for step in summary["steps"]] == [("good", 0), ("bad", 1)]
    machine = summary["machine"]
    assert (machine["gpu"], machine["driver"], machine["cuda"]) == ("NVIDIA L4", "550.54.15", "12.4")
    said = capsys.readouterr().out
    assert "bad ... exit code 1" in said
    assert "\n    99\n    no kernel\n" in said
    assert "\n    50\n" not in said
    monkeypatch.setattr(benchmarks.gpu, "steps_of", lambda args: [Step("bad", ["true"])])
    assert main(["gpu", *options]) == 0
    summary = json.loads((tmp_path / "gpu.json").read_text())
    assert [(step["name"], step["exit_code"]) for step in summary["steps"]] == [("good", 0), ("bad", 0)]


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"steps": [{}]}', '{"steps": 1}', '"\\ud800"'])
def test_a_summary_that_is_none_is_a_sentence_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str
):
    monkeypatch.setattr(benchmarks.gpu, "gpu", lambda: Gpu("NVIDIA L4", (8, 9)))
    (tmp_path / "gpu.json").write_text(content)
    assert main(["gpu", "--out", str(tmp_path), "--steps", "tests"]) == 2
    said = f"gpu: {tmp_path / 'gpu.json'} is no summary of this command; move it away, or name another --out\n"
    assert capsys.readouterr().err == said
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("gpu.json", content)]


def test_a_smoke_test_without_its_script_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["gpu", "--out", str(tmp_path / "out"), "--steps", "smoke"]) == 2
    assert capsys.readouterr().err == "gpu: --steps names smoke, and there is no script; name one with --smoke\n"
    assert not (tmp_path / "out").exists()


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
