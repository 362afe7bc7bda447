"""The command that an export ends with runs as it stands: a job that the task takes, in a shell."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.bundle import open_bundle
from engine.tasks import TASKS, task_class
from export.command.closing_table import Result


def is_like_an_example(job: Collection[str], tag: str) -> bool:
    """Whether it has all fields of an example, and else options alone; where that has one item it may have many."""
    task: Any = task_class(tag)
    one, many = getattr(task, "one", "text"), getattr(task, "many", "texts")

    def fields(job: Collection[str]) -> set[str]:
        return {one if name == many else name for name in job}

    options = set(getattr(task, "option_names", ()))
    return any(fields(example) <= fields(job) <= fields(example) | options for example in task.examples)


@pytest.mark.parametrize(
    ("tag", "job", "taken"),
    [
        ("text-ranking", ("query", "documents", "top_n"), True),
        ("text-ranking", ("texts",), False),
        ("sentence-similarity", ("source_sentence", "sentences"), True),
        ("image-text-embedding", ("texts", "normalize"), True),
        ("zero-shot-image-classification", ("image", "candidate_labels"), True),
        ("zero-shot-image-classification", ("image",), False),
        ("fill-mask", ("texts", "top_k"), True),
        ("fill-mask", ("text", "top_n"), False),
    ],
)
def test_a_job_is_held_against_the_examples(tag: str, job: Collection[str], taken: bool):
    if tag not in TASKS:
        pytest.skip(f"there is no {tag}")
    assert is_like_an_example(job, tag) == taken


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
        said = f"test_input.json has not the fields of any of {tag}'s examples: take {tag} out of _OF_TEST_INPUT in "
        assert is_like_an_example(job, tag), f"{said}export/command/closing_table.py, or change the job"
    else:
        assert last == "--rp_serve_api"
