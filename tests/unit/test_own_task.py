"""What somebody who adds a task is told where its files do not fit: docs/adding-a-task.md."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import engine.tasks
import export.tasks
from engine.bundle import open_bundle
from engine.config import Limits, Settings
from engine.errors import BundleError, MissingPackage
from engine.tasks import load_task, task_class
from engine.tasks.items import ItemsTask, Part
from export.__main__ import main
from export.errors import Refused
from export.parity_cases import _rows
from export.tasks import export_task
from export.tasks.base import ExportTask, Probe
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


def test_a_file_that_does_not_end_with_its_task_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine.tasks, "TASKS", (*engine.tasks.TASKS, "endless-task"))
    for package in (engine.tasks, export.tasks):
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    (tmp_path / "endless_task.py").write_text("class Task:\n    tag = 'endless'\n")
    with pytest.raises(BundleError, match="engine/tasks/endless_task.py must end with `TASK = ` and the class"):
        task_class("endless-task")
    with pytest.raises(Refused, match="export/tasks/endless_task.py must end with `TASK = ` and an instance"):
        export_task("endless-task")
    (tmp_path / "misnamed_task.py").write_text("class Task:\n    tag = 'misnamed'\nTASK = Task()\n")
    with pytest.raises(Refused, match="misnamed_task.py has the tag 'misnamed'; it must be 'misnamed-task'"):
        export_task("misnamed-task")
    with pytest.raises(BundleError, match="'no-task' is not one of .*, or add its engine/tasks/no_task.py"):
        task_class("no-task")


def test_a_method_that_is_missing_is_named():
    with pytest.raises(NotImplementedError, match="ItemsTask has no method `answer`, which every task must have"):
        ItemsTask(Limits()).answer("a", Part([]), [], {})
    with pytest.raises(NotImplementedError, match="ExportTask has no method `input_axes`, which every task must have"):
        list(ExportTask().input_axes())
