"""Wrong arguments of `python -m benchmarks`: a sentence, exit code 2, and nothing measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.engines import prepare


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("load --bundle /no/such", "load: /no/such is not a bundle (no manifest.json); make one with"),
        ("tasks --task no-task", "tasks: no model of 'no-task' in benchmarks/zoo; there are: audio-classification"),
        ("report --out {file}", "report: [Errno 17] File exists"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(command: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "file"
    file.touch()
    assert main(command.format(file=file).split()) == 2
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("emulator --port 99999", "argument --port: '99999' is not a port from 0 to 65535"),
        ("recommend f.json --p99-ms x --price-per-hour 1", "argument --p99-ms: x is not a number above 0"),
    ],
)
def test_what_is_no_value_is_told_by_the_parser(command: str, said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_precision_that_there_is_not_is_not_measured_as_another(small_bundle: Path):
    with pytest.raises(RuntimeError, match="there is no precision 'fp8'; take of fp32, tf32, fp16, bf16, int8"):
        prepare(small_bundle, "onnxruntime-cpu", "fp8", [1], [16], "")


def test_ctrl_c_is_a_sentence_and_reaches_no_process_that_a_command_started():
    """A terminal sends SIGINT to the whole process group."""
    script = (
        "import os, signal, sys, time\n"
        "from benchmarks import throughput\n"
        "from benchmarks.__main__ import main\n"
        "from benchmarks.targets.pipe import PipeProcess\n"
        "child = 'import sys; print(\\'{}\\', flush=True); sys.stdin.read()'\n"
        "def interrupted(args):\n"
        "    with PipeProcess([sys.executable, '-c', child], log=None):\n"
        "        os.killpg(0, signal.SIGINT)\n"
        "        time.sleep(10)\n"
        "throughput.main = interrupted\n"
        "sys.exit(main(['throughput']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, process_group=0, cwd=Path.cwd()
    )
    assert (done.returncode, done.stderr) == (130, "throughput: interrupted\n")
