"""`python -m export --list-tasks`: what a model can be exported for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from engine.table import table
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
    """Every tag, transformers' class that loads its models, and a sentence."""
    rows = [(one["task"], one["model_class"] or "-", one["summary"]) for one in tasks()]
    return table([("task", "model class", "what it does"), *rows])


def tasks() -> list[dict[str, Any]]:
    """The same, for --json; no class for a task without a model."""
    from engine.tasks import task_class  # brings numpy and tokenizers, which --help needs not

    found = {tag: task_class(tag) for tag in TAGS}
    return [{"task": tag, "model_class": one.auto_class or None, "summary": one.summary} for tag, one in found.items()]
