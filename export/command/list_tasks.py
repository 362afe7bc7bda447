"""`python -m export --list-tasks`: what a model can be exported for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from engine.errors import BundleError, MissingPackage
from engine.table import table
from export.errors import Refused, refusal_of
from export.tasks import TAGS

LIST_TASKS = "--list-tasks"


class ListTasks(argparse.Action):
    """Prints the table and exits, like --help does."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print and exit."""
        print(tasks_table(), flush=True)
        parser.exit()


def tasks_table() -> str:
    """Every tag, transformers' class that loads its models, and a sentence, or what is wrong with the task's file."""
    rows = [
        (one["task"], one.get("model_class") or "-", one["summary"] if "summary" in one else f"error: {one['error']}")
        for one in tasks()
    ]
    return table([("task", "model class", "what it does"), *rows])


def tasks() -> list[dict[str, Any]]:
    """The same, for --json; no class for a task without a model."""
    from engine.tasks import task_class  # brings numpy and tokenizers, which --help needs not
    from export.own_task import check_online

    found: list[dict[str, Any]] = []
    for tag in TAGS:
        try:
            check_online(tag)
        except (BundleError, MissingPackage, Refused) as error:  # of one file, which hides no other task
            if isinstance(error, MissingPackage) and error.__cause__ and refusal_of(error.__cause__):
                raise  # of the export itself
            found.append({"task": tag, "error": str(error)})
            continue
        kind = task_class(tag)
        found.append({"task": tag, "model_class": kind.auto_class or None, "summary": kind.summary})
    return found
