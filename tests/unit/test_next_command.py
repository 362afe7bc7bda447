"""The command that an export ends with runs as it stands: a job that the task takes, in a shell."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from engine.bundle import open_bundle
from engine.tasks import TASKS, task_class
from export.command.closing_table import Result


@pytest.mark.parametrize("tag", TASKS)
def test_it_brings_a_job_of_the_task(small_bundle: Path, tag: str):
    bundle = open_bundle(small_bundle)
    bundle = replace(bundle, path=Path("my models/b 1"), manifest=replace(bundle.manifest, task=tag))
    setting, *command, last = shlex.split(Result(bundle, "fp32", {}).next)
    assert setting == "BUNDLE=my models/b 1"
    if last.startswith("{"):
        assert command == ["python", "-m", "handler", "--test_input"]
        assert json.loads(last) == {"input": json.loads(json.dumps(task_class(tag).examples[0]))}
    elif last == "handler":
        job = json.loads(Path("test_input.json").read_text())["input"]
        said = f"test_input.json is no job of {tag}: take it out of _OF_TEST_INPUT in export/command/closing_table.py"
        fields = (getattr(task_class(tag), name, default) for name, default in (("one", "text"), ("many", "texts")))
        assert set(job) <= {*fields, *getattr(task_class(tag), "option_names", ())}, said
    else:
        assert last == "--rp_serve_api"
