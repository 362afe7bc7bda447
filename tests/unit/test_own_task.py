"""What somebody who adds a task is told where its files do not fit: docs/adding-a-task.md."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import engine.tasks
from engine.bundle import open_bundle
from engine.config import Settings
from engine.errors import MissingPackage
from engine.tasks import load_task, task_class
from export.__main__ import main
from export.parity_cases import _rows
from export.tasks import export_task
from export.tasks.base import Probe
from handler.boot import boot
from handler.timeline import Timeline


def test_a_package_that_a_task_needs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "own_task.py").write_text("import no_such_package.inner\n")
    monkeypatch.setattr(engine.tasks, "TASKS", (*engine.tasks.TASKS, "own-task", "broken-task"))
    monkeypatch.setattr(engine.tasks, "__path__", [*engine.tasks.__path__, str(tmp_path)])
    sentence = "the task own-task needs the Python package no_such_package, which is not installed"
    with pytest.raises(MissingPackage, match=sentence):
        task_class("own-task")
    (tmp_path / "broken_task.py").write_text("import engine.no_such_module\n")
    with pytest.raises(ModuleNotFoundError, match=r"engine\.no_such_module"):
        task_class("broken-task")
    monkeypatch.setattr("export.list_tasks.TAGS", ("own-task",))
    assert main(["--list-tasks"]) == 3
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("payload", "inputs", "said"),
    [
        (
            {"review": "x"},
            [{}],
            "unknown field `review`; known are .*; let FeatureExtractionExport.probe make payloads",
        ),
        (
            {"texts": ["a", "b"]},
            [{}],
            "makes 2 rows of the probe 'odd', for which FeatureExtractionExport has 1 inputs",
        ),
    ],
)
def test_halves_that_do_not_fit_together_are_told_apart(small_bundle: Path, payload, inputs, said: str):
    task = load_task(open_bundle(small_bundle))
    with pytest.raises(TypeError, match=said):
        _rows(task, Probe("odd", payload, inputs), export_task("feature-extraction"))


def test_a_tokenizer_that_panics_costs_its_job_alone(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    class PanicException(BaseException):  # pyo3's, of a thread pool that could not be made, is no Exception either
        pass

    def panic(payload: object) -> None:
        raise PanicException("ThreadPoolBuildError")

    worker = boot(Settings(bundle=small_bundle, engine="fake"), Timeline())
    monkeypatch.setattr(worker.handler._task, "parse", panic)
    reply = asyncio.run(worker.handler.handle({"id": "a", "input": {"text": "a"}}))
    worker.batcher.close()
    assert reply == {"error": "worker fault: PanicException: ThreadPoolBuildError"}
