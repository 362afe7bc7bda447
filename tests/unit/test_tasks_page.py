"""docs/tasks.md is what the results say, and the results cover what the tests cover."""

from __future__ import annotations

from benchmarks import tasks, zoo
from benchmarks.results_file import read
from engine.tasks import TASKS
from export.tasks import TAGS, export_task

RESULTS = read(tasks.RESULTS)


def test_every_task_has_architectures_and_stages():
    tags = {tag for tag in TAGS if export_task(tag).has_model}
    assert tags <= set(TASKS), "a task has a file in engine/tasks and one in export/tasks"
    how = "docs/adding-a-task.md, What `make test` asks for"
    missing = tags - {case.task for case in zoo.cases()}, tags - {one.task for one in zoo.stages()}
    assert missing == (set(), set()), f"no model in benchmarks/zoo (CASES, STAGES) for {missing}; see {how}"
    assert {case.task for case in zoo.cases()} <= tags
    measured = set(tasks.microseconds(RESULTS))
    assert measured == {one.task for one in zoo.stages()}, "run `python -m benchmarks tasks --task TAG`"


def test_what_is_not_the_engine_is_small_or_says_why():
    why = {one.task: one.why for one in zoo.stages()}
    for task, stages in tasks.microseconds(RESULTS).items():
        said = f"{tasks.outside(stages):.0%} of {task}'s job are outside the engine: give its Stages in benchmarks/zoo "
        said += "a larger model, or `why`, a sentence for the table; then `python -m benchmarks readme`"
        assert tasks.outside(stages) <= tasks.SHARE or why[task].endswith("."), said
