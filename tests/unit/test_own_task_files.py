"""How a task is found by the files that somebody adds, and what these are told to have."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import engine.tasks
import export.tasks
from engine.bundle import open_bundle
from engine.errors import BundleError, MissingPackage
from engine.tasks import task_class
from engine.tasks.feature_extraction import FeatureExtraction
from export.__main__ import main
from export.errors import Refused
from export.load import load
from export.recipe import Recipe
from export.tasks import export_task
from tests.models import tiny_bert


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
    said = r"broken_task\.py fails at line 1: ModuleNotFoundError: No module named 'engine\.no_such_module'; correct it"
    with pytest.raises(BundleError, match=said):
        task_class("broken-task")
    monkeypatch.setattr("export.command.list_tasks.TAGS", ("fill-mask", "own-task"))
    with pytest.raises(SystemExit) as done:
        main(["--list-tasks"])
    assert done.value.code == 0
    _, fine, broken = capsys.readouterr().out.splitlines()
    assert fine.startswith("fill-mask  AutoModelForMaskedLM  ")
    assert f"error: {sentence}" in broken
    (tmp_path / "own_task.py").write_text("raise ModuleNotFoundError(name='tokenizers')\n")  # of all tasks on texts
    assert main(["--list-tasks"]) == 3
    assert "pip install -r requirements/export.txt" in capsys.readouterr().err


GOOD = """
from engine.tasks.items import ItemsTask

class Count(ItemsTask):
    summary = "Counts."
    auto_class = ""
    examples = ({"text": "a"},)

TASK = Count
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('    summary = "Counts."\n', ""), "has no text `summary`; let it be a sentence on what the task does"),
        (('    auto_class = ""\n', ""), "has no text `auto_class`; let it be the name of transformers' class for such"),
        (('    examples = ({"text": "a"},)\n', ""), "has no list of objects as `examples`; let it be one of payloads"),
        (('({"text": "a"},)', "()"), "has no list of objects as `examples`; let it be one of payloads that the task"),
        (('({"text": "a"},)', '({"text": "a"})'), "has no list of objects as `examples`"),
        (('"a"}', 'b"a"}'), "Count.examples[0] is no payload of a job: Object of type bytes is not JSON serializable"),
        (("TASK = Count", "TASK = Count()"), "fails at line 9: TypeError: ItemsTask.__init__() missing 1 required"),
        (("ItemsTask)", "ItemTask)"), "fails at line 4: NameError: name 'ItemTask' is not defined; correct it"),
        (("import ItemsTask", "import ItemTask"), "fails at line 2: ImportError: cannot import name 'ItemTask'"),
        (("TASK = Count", "TASK ="), "fails: SyntaxError: invalid syntax (counts_task.py, line 9); correct it"),
    ],
)
def test_a_task_that_lacks_a_name_is_refused_by_its_file_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], change: Any, said: str
):
    add_task(monkeypatch, tmp_path, "counts_task", GOOD.replace(*change))
    assert main(["--json", "--task", "counts-task", "--out", str(tmp_path / "bundle")]) == 2
    found = json.loads(capfd.readouterr().out)
    assert found["status"] == "refused"
    assert found["error"].startswith("engine/tasks/counts_task.py")
    assert said in found["error"]
    assert not (tmp_path / "bundle").exists()
    assert main(["--json", "--list-tasks"]) == 0
    listed = {one.pop("task"): one for one in json.loads(capfd.readouterr().out)["tasks"]}
    assert listed["counts-task"] == {"error": found["error"]}
    assert listed["fill-mask"]["model_class"] == "AutoModelForMaskedLM"


def add_task(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, code: str) -> None:
    """A task of a fork, as a file beside those of the library."""
    (folder / f"{name}.py").write_text(code)
    tag = name.replace("_", "-")
    monkeypatch.setattr(engine.tasks, "TASKS", (*engine.tasks.TASKS, tag))
    monkeypatch.setattr(engine.tasks, "__path__", [*engine.tasks.__path__, str(folder)])
    for module in ("export.command.list_tasks", "export.recipe"):
        monkeypatch.setattr(f"{module}.TAGS", (*export.tasks.TAGS, tag))
    monkeypatch.delitem(sys.modules, f"engine.tasks.{name}", raising=False)


def test_a_file_with_a_hyphen_is_told_to_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    add_task(monkeypatch, tmp_path, "my-count", GOOD)
    with pytest.raises(BundleError, match=r"must be engine/tasks/my_count\.py, with underscores for the hyphens"):
        task_class("my-count")


def test_the_worker_does_not_ask_for_what_the_export_alone_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    add_task(monkeypatch, tmp_path, "bare_task", GOOD.replace('summary = "Counts."', "pass"))
    assert task_class("bare-task").__name__ == "Count"


def test_a_task_with_a_model_that_has_no_examples_is_refused_before_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(FeatureExtraction, "examples", ())
    with pytest.raises(Refused, match=r"feature_extraction\.py: FeatureExtraction has no list of objects as"):
        load(Recipe(str(tiny_bert(tmp_path / "model")), "feature-extraction", tmp_path / "bundle"))


OFFLINE = """
from export.tasks.base import ExportTask

class CountExport(ExportTask):
    tag = "filed-task"
    has_model = False

    def files(self, source):
        return {**super().files(source), "stop.txt": "the a", "lists/more.txt": "an"}

    def task_config(self, source, outputs):
        return {"of": source.task.tag}

TASK = CountExport()
"""


def test_files_of_a_task_without_a_model_are_in_its_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    add_task(monkeypatch, tmp_path, "filed_task", GOOD)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "filed_task.py").write_text(OFFLINE)
    monkeypatch.setattr(export.tasks, "__path__", [*export.tasks.__path__, str(tmp_path / "export")])
    export.__main__.export(Recipe("", "filed-task", tmp_path / "bundle"))
    bundle = open_bundle(tmp_path / "bundle")
    bundle.verify()
    assert [bundle.file(name).read_text() for name in ("stop.txt", "lists/more.txt")] == ["the a", "an"]
    assert dict(bundle.manifest.task_config) == {"of": "filed-task"}


def test_what_an_installed_package_lacks_is_not_to_be_named_under_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine.tasks, "TASKS", (*engine.tasks.TASKS, "lacking-task"))
    monkeypatch.setattr(engine.tasks, "__path__", [*engine.tasks.__path__, str(tmp_path)])
    (tmp_path / "lacking_task.py").write_text("import yaml.tests\n")
    lacking = (
        "needs the Python module yaml.tests, which the package yaml that is installed here lacks; install a version"
    )
    with pytest.raises(MissingPackage, match=lacking):
        task_class("lacking-task")


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


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("from export.gate.measure import Measure", r"at line 1: ModuleNotFoundError: No module named 'export\.gate\."),
        ("from export.gate.measures import Mesure", "at line 1: ImportError: cannot import name 'Mesure'"),
        (
            "from export.gate.measures import Measure\nmeasures = (Measure('difference', limit=1e-4),)",
            "at line 2: TypeError: .*'int8_limit'",
        ),
    ],
)
def test_a_mistake_in_the_export_s_file_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
):
    (tmp_path / "slip_task.py").write_text(f"{line}\n")
    monkeypatch.setattr(export.tasks, "__path__", [*export.tasks.__path__, str(tmp_path)])
    with pytest.raises(Refused, match=rf"export/tasks/slip_task\.py fails {said}.*; correct it"):
        export_task("slip-task")


def test_a_package_that_the_export_s_file_needs_is_left_to_who_names_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "lone_task.py").write_text("import no_such_package\n")
    monkeypatch.setattr(export.tasks, "__path__", [*export.tasks.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        export_task("lone-task")


def test_only_a_task_with_a_model_needs_a_file_in_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine.tasks, "TASKS", (*engine.tasks.TASKS, "half-task", "whole-task"))
    monkeypatch.setattr(engine.tasks, "__path__", [*engine.tasks.__path__, str(tmp_path)])
    for name, auto_class in (("half", "AutoModel"), ("whole", "")):
        (tmp_path / f"{name}_task.py").write_text(GOOD.replace('""', repr(auto_class)))
    with pytest.raises(Refused, match=r"half-task needs a model, and export/tasks/half_task\.py is missing; see docs"):
        export.__main__.export(Recipe("m", "half-task", tmp_path / "half"))
    export.__main__.export(Recipe("", "whole-task", tmp_path / "whole"))
    assert open_bundle(tmp_path / "whole").manifest.task == "whole-task"
