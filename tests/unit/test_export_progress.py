"""What a user sees while a model is exported."""

from __future__ import annotations

import re
import sys

import pytest

from export.progress import megabytes, stage, table


def test_a_line_a_stage(capsys: pytest.CaptureFixture[str]):
    with stage("onnx") as note:
        note("90.3 MB")
        note("opset 17")
    assert re.fullmatch(r"onnx        \d\.\d s  90\.3 MB, opset 17\n", capsys.readouterr().out)


def test_a_mark_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with stage("load"):
        pass
    assert re.search(r"✓ load        \d\.\d s\n", capsys.readouterr().out)


def test_a_stage_that_fails_prints_nothing(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match="x"), stage("load"):
        raise ValueError("x")
    assert capsys.readouterr().out == ""


def test_tables_and_sizes():
    assert table(("a", "long"), [("wide cell", "b")]) == "a          long\nwide cell  b"
    assert (megabytes(612), megabytes(90_352_600)) == ("0.6 kB", "90.4 MB")
