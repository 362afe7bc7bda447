"""docs/export.md, *A module of your own*: run as it stands there, it becomes a bundle that answers like PyTorch."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.models import ask
from benchmarks.zoo.vocabulary import word_piece_tokenizer
from export.__main__ import main
from export.model_files.json_files import read_json
from tests.models import write_json
from tests.pages import page

SECTION = page("docs/export.md").partition("### A module of your own")[2].partition("\n### ")[0]
MODULE, SAVED = re.findall(r"^```python\n(.*?)```", SECTION, re.MULTILINE | re.DOTALL)
(COMMAND,) = re.findall(r"^    python -m export (.*)$", SECTION, re.MULTILINE)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's file, from which python runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "tower.py").write_text(MODULE)
    yield tmp_path
    for name in [name for name in sys.modules if name == "tower" or name.startswith("transformers_modules")]:
        del sys.modules[name]


def test_what_the_page_says_of_a_module_of_ones_own(here: Path, capsys: pytest.CaptureFixture[str]):
    import torch

    tokenizer: Any = word_piece_tokenizer("BertTokenizerFast")(here)
    tokenizer.model_max_length = 64
    from tower import Tower, TowerConfig  # type: ignore[import-not-found]  # the page's, written just now

    torch.manual_seed(0)
    model = Tower(TowerConfig(vocab_size=len(tokenizer))).eval()
    exec(SAVED, {"tokenizer": tokenizer, "weights": model.state_dict()})
    assert main(shlex.split(COMMAND)) == 0, capsys.readouterr().err
    with torch.inference_mode():
        states = model(**tokenizer("a quick test", return_tensors="pt")).last_hidden_state
    expected = states[0].mean(0).numpy()
    found = ask(here / "bundle", {"text": "a quick test"})["embedding"]
    np.testing.assert_allclose(found, expected, atol=1e-5)

    config = read_json(here / "my-tower/config.json")
    write_json(here / "my-tower/config.json", {name: value for name, value in config.items() if name != "auto_map"})
    capsys.readouterr()
    assert main([*shlex.split(COMMAND), "--out", "other"]) == 2
    assert "is of type tower" in (said := capsys.readouterr().err)
    assert said.endswith("for --trust-remote-code (docs/export.md, A module of your own)\n")
