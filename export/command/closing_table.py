"""What a run ends with: files and sizes, the precision and why, the gate's figures, the next command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any, TextIO, TypeAlias

from engine.bundle import Bundle, open_bundle
from engine.sizes import readable
from engine.table import table
from engine.tasks import task_class
from export.command.progress import size_of
from export.command.terminal import is_rich
from export.recipe import Recipe

_OF_TEST_INPUT = ("feature-extraction", "sentence-similarity", "sparse-encoder")
"""Tasks that take the job in test_input.json, which the handler answers when it is given none."""
_LONGEST_JOB = 200
"""Characters that are still good to read: an image's are not."""

_Table: TypeAlias = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Header and rows."""


@dataclass(frozen=True)
class Result:
    """A bundle that was written, and what its gate measured."""

    bundle: Bundle
    asked: str
    """The precision of the recipe."""
    figures: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of everything in it."""
        return size_of(self.bundle.path)

    @property
    def next(self) -> str:
        """The command to go on with."""
        return f"BUNDLE={quote(str(self.bundle.path))} python -m handler{_job(self.bundle.manifest.task)}"

    def facts(self) -> list[tuple[str, str]]:
        """A word and what there is to say to it."""
        manifest = self.bundle.manifest
        found = [("bundle", f"{self.bundle.path}  {readable(self.size)}")]
        if manifest.graphs:
            by = f", traced by {manifest.exporter}" if manifest.exporter else ""
            by += f" ({manifest.exporter_why})" if manifest.exporter_why else ""
            found.append(("model", f"{_pinned(manifest.model, manifest.revision)}, {manifest.task}{by}"))
            for name, of in manifest.adapters.items():
                found.append(("adapter", f"{_pinned(name, of['revision'])}, merged into the weights"))
            found += [("code", _pinned(repository, commit)) for repository, commit in manifest.code.items()]
            found.append(("precision", self._precision()))
        found += [("FAILED", f"{one}; workers refuse it unless ALLOW_PARITY_FAILURE=1") for one in self.failures]
        return [*found, ("parity", str(self.figures["worst"])), ("next", self.next)]

    @property
    def failures(self) -> list[str]:
        """What did not pass the gate, where that was allowed."""
        return list(self.figures.get("failed", ()))

    def _precision(self) -> str:
        """What was chosen for what, and why."""
        chosen = self.figures.get("precisions") or {"cpu": self.bundle.manifest.precision}
        told = ", ".join(f"{precision} on {target}" for target, precision in chosen.items())
        why = "the fastest that passed" if "auto" in self.asked else f"--precision {self.asked}"
        steps = [step for tried in self.figures.get("ladder", {}).values() for step in tried]
        left = sum(not step["passed"] for step in steps)
        said = f"; {left} {'step was' if left == 1 else 'steps were'} left" if left else ""
        return f"{told} ({why}{said})"

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.path),
            "sha256": self.bundle.sha256,
            "bytes": self.size,
            "files": {name: size for name, (size, _) in manifest.files.items()},
            "model": manifest.model,
            "revision": manifest.revision,
            "task": manifest.task,
            "architecture": manifest.architecture,
            "exporter": manifest.exporter,
            "exporter_why": manifest.exporter_why,
            "adapters": manifest.adapters,
            "code": manifest.code,
            "precision": {"asked": self.asked, **self.figures.get("precisions", {"cpu": manifest.precision})},
            "failed": self.failures,
            "parity": self.figures,
            "versions": manifest.versions,
            "next": self.next,
        }


def _job(task: str) -> str:
    """Options of the handler that make it answer, or wait for, a job of `task`."""
    if task in _OF_TEST_INPUT:
        return ""
    job = json.dumps({"input": task_class(task).examples[0]}, ensure_ascii=False)
    return f" --test_input {quote(job)}" if len(job) <= _LONGEST_JOB else " --rp_serve_api"


def _pinned(name: str, revision: str | None) -> str:
    return f"{name} at {revision[:12]}" if revision else name


def result_of(recipe: Recipe, figures: dict[str, Any]) -> Result:
    """What to say about the bundle of `recipe`, which has been written."""
    return Result(open_bundle(recipe.out), recipe.precision, figures)


def print_result(result: Result, to: TextIO) -> None:
    """As tables on a terminal, else as plain lines."""
    files = [(name, readable(size)) for name, (size, _) in result.bundle.manifest.files.items()]
    tables: list[_Table] = [(("file", "size"), files)] if files else []
    if result.figures.get("ladder"):
        from export.precision.ladder import LADDER_HEADER, ladder_rows

        tables.append((LADDER_HEADER, ladder_rows(result.figures)))
    if is_rich(to):
        _print_rich(tables, result.facts(), to)
        return
    for header, rows in tables:
        print(f"\n{table([header, *rows])}", file=to)
    print(file=to)
    for word, said in result.facts():
        print(f"{word:<9} {said}", file=to)


def _print_rich(tables: Sequence[_Table], facts: Sequence[tuple[str, str]], to: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=to, highlight=False, soft_wrap=True)
    for header, rows in tables:
        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for name in header:
            drawn.add_column(name, justify="right" if name in ("size", "seconds") else "left", overflow="fold")
        for row in rows:
            drawn.add_row(*(Text(cell) for cell in row))
        console.print()
        console.print(drawn)
    console.print()
    for word, said in facts:
        console.print(Text.assemble((f"{word:<9} ", "dim"), (said, "bold" if word == "next" else "")))
