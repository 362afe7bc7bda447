"""Wrong arguments of `python -m benchmarks`: a sentence, exit code 2, and nothing measured."""

from __future__ import annotations

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
