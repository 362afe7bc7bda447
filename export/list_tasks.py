"""`python -m export --list-tasks`: what a model can be exported for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from engine.table import table
from export.tasks import TAGS


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
    from engine.tasks import task_class  # brings numpy and tokenizers, which --help needs not

    rows = [(tag, task_class(tag).auto_class or "-", task_class(tag).summary) for tag in TAGS]
    return table([("task", "model class", "what it does"), *rows])
