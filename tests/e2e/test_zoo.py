"""Every architecture of the zoo: exported, opened, asked, compared with PyTorch; or refused in the words that it names.

`make test` takes the quickest, one or two a modality; `make test-zoo` all, and leaves the rows of docs/models.md in
build/zoo.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine.tasks
from benchmarks import models, zoo
from benchmarks.results_file import read
from benchmarks.zoo import images
from benchmarks.zoo.answers import COMPARE, difference, payload_of
from benchmarks.zoo.case import Case
from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.bundle import open_bundle
from export.plans.gate import gate
from export.plans.recipe import PlanRecipe

QUICKEST = ("rembert", "phi", "convnextv2", "segformer", "unispeech-sat", "t5")
CASES = [
    pytest.param(case, id=case.architecture, marks=() if case.architecture in QUICKEST else (pytest.mark.zoo,))
    for case in zoo.models()
]
BUILT = Path("build/zoo.json")

# What transformers and the tracers warn of is theirs, and differs from architecture to architecture.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def rows() -> Iterator[list[dict[str, Any]]]:
    found: list[dict[str, Any]] = []
    yield found
    if len(found) == len(CASES):
        BUILT.unlink(missing_ok=True)
        models.record(found, BUILT)


@pytest.mark.parametrize("case", CASES)
def test_an_architecture(case: Case, rows: list[dict[str, Any]], tmp_path: Path):
    row = models.row(case, tmp_path)
    rows.append(row)
    assert models.as_expected(case, row), row
    assert (tmp_path / "bundle").exists() is not bool(case.refused)
    if not case.refused:
        keep_plans_that_answer_alike(tmp_path / "bundle")


def keep_plans_that_answer_alike(path: Path) -> None:
    """The gate of plans passes ONNX Runtime in a plan's place, at the smaller of the sizes that are the default."""
    bundle = open_bundle(path)
    for name in bundle.manifest.graphs:
        ladder = PlanRecipe("fp32").ladder(bundle.manifest, name)
        small = [bucket for bucket in ladder if bucket.tokens <= 512]  # of texts 32 rows of 16 tokens: some are short
        with closing(OnnxRuntimeEngine(bundle, name)) as engine:
            assert gate(bundle, name, engine, small, "fp32")["buckets"] == len(small)


def test_the_results_cover_the_zoo():
    found = {row["architecture"]: row for row in read(models.RESULTS).details["models"]}
    cases = {case.architecture: case for case in zoo.models()}
    gone = f"take the rows of {set(found) - set(cases)} out of {models.RESULTS}"
    assert set(found) == set(cases), f"run `python -m benchmarks models`; {gone}"
    assert all(models.as_expected(case, found[name]) for name, case in cases.items())
    tasks = {row["task"] for row in found.values() if not row["refused"]}
    assert tasks == {case.task for case in cases.values() if not case.refused}, "run `python -m benchmarks models`"


def test_a_reply_that_differs_in_anything_but_numbers_is_no_near_miss():
    assert difference({"label": "a", "scores": [0.5, 1]}, {"label": "a", "scores": np.array([0.5, 0.75])}) == 0.25
    wrong: list[Any] = [{"label": "b", "scores": [0.5]}, {"label": "a", "scores": []}, {"label": "a"}, [], None]
    for ours in wrong:
        with pytest.raises(ValueError, match="instead of"):
            difference(ours, {"label": "a", "scores": [0.5]})


@pytest.mark.parametrize("place", range(3))
def test_what_is_no_number_is_no_near_miss(place: int):
    expected = [0.1, 0.2, 0.3]
    ours = [math.nan if at == place else value for at, value in enumerate(expected)]
    found = difference({"a": [0.5], "b": ours}, {"a": [0.5], "b": expected})
    assert math.isnan(found)
    assert not models.as_expected(Case("t", "any", lambda folder: folder), {"refused": None, "difference": found})


def test_a_wrong_answer_is_not_as_expected():
    exported = {"refused": None, "difference": 2 * models.LIMIT}
    case = Case("fill-mask", "any", lambda folder: folder)
    assert not models.as_expected(case, exported)
    assert not models.as_expected(case, {"refused": "no"})
    assert models.as_expected(case, {"refused": None, "difference": 0.0})
    refused = Case("fill-mask", "any", lambda folder: folder, refused="an encoder with a decoder")
    assert not models.as_expected(refused, {"refused": None, "difference": 0.0})
    assert not models.as_expected(refused, {"refused": "something else"})
    assert models.as_expected(refused, {"refused": "model (t5) is an encoder with a decoder"})


def test_architectures_of_a_task_that_a_fork_has_taken_out_are_not_asked(monkeypatch: pytest.MonkeyPatch):
    """Their lines in the tables of a family may stay."""
    gone = "feature-extraction"  # of which some are refused
    assert gone in {case.task for case in zoo.models()}
    monkeypatch.setattr(engine.tasks, "TASKS", tuple(tag for tag in engine.tasks.TASKS if tag != gone))
    assert gone not in {case.task for case in zoo.models()}


def test_a_forks_case_is_written_like_those_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """For images; what it is compared with may be missing, and then it is not among the models that are asked."""
    (tmp_path / "image_flags.py").write_text(
        "class ImageFlags:\n"
        "    auto_class = 'AutoModelForImageClassification'\n"
        "    examples = ({'image': '...', 'threshold': 0.5},)\n"
        "TASK = ImageFlags\n"
    )
    monkeypatch.setattr(engine.tasks, "TASKS", (*engine.tasks.TASKS, "image-flags"))
    monkeypatch.setattr(engine.tasks, "__path__", [*engine.tasks.__path__, str(tmp_path)])
    case = Case("image-flags", "vit", partial(images.task_model, task="image-flags", architecture="vit"))
    assert json.loads((case.make(tmp_path / "model") / "config.json").read_text())["architectures"] == [
        "ViTForImageClassification"
    ]
    assert payload_of(case) == {"image": "...", "threshold": 0.5}
    monkeypatch.setattr(images, "CASES", [case, *images.CASES])
    assert case not in zoo.models()
    monkeypatch.setattr(images, "CASES", [case])
    monkeypatch.setitem(COMPARE, "image-flags", COMPARE["image-classification"])
    assert case in zoo.models()
