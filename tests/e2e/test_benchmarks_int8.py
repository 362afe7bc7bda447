"""`python -m benchmarks int8` on a model of a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import int8, results_file
from benchmarks.__main__ import main

TINY = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}


def test_both_forms_are_measured_beside_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(int8, "BUILD", tmp_path)
    monkeypatch.setattr(int8, "_ROWS", 4)
    monkeypatch.setitem(int8.MODELS, "tiny", ("ResNet", TINY))
    out = tmp_path / "int8.json"
    assert main(["int8", "--models", "tiny", "--texts", "0", "--rounds", "2", "--json", str(out)]) == 0
    found = results_file.read(out)
    assert [one.target for one in found.measurements] == ["fp32", "dynamic", "static"]
    for one in found.measurements[1:]:
        assert len(found.ratios(one)) == 2
    assert "| tiny  | static" in capsys.readouterr().out
    assert not list((tmp_path / "int8/tiny/graphs/model").glob("int8*"))  # of the bundle a copy is changed


def test_a_model_that_is_not_known_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["int8", "--models", "GPT"])
    assert "there is no model 'GPT'; known are ResNet-18, ResNet-50" in capsys.readouterr().err
