"""How a run ended: for the shell an exit code, for a person lines, for CI one JSON object."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from engine.errors import BundleError, MissingPackage
from engine.table import table
from export.command import interrupts
from export.command.exit_codes import INTERRUPTED, REFUSED, STATUS, UNAVAILABLE
from export.command.progress import Done, stages
from export.errors import ParityFailed, Refused, refusal_of

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from export.command.closing_table import Result

NOTHING_WRITTEN = "interrupted; nothing was written"


@dataclass(frozen=True)
class Outcome:
    """The exit code, and why: a sentence and the worst rows of a gate, or a bundle."""

    code: int
    sentence: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    result: Result | None = None
    next: str = ""
    """A command, where there is no bundle that names one."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further keys for --json."""

    def tell(self, to: TextIO | None = None) -> None:
        """Print it: what went wrong to stderr, what came out to `to`, or else to stdout."""
        if self.result is not None:
            from export.command.closing_table import print_result

            print_result(self.result, to or sys.stdout)
        elif self.next:
            print(f"next      {self.next}", file=to or sys.stdout)
        if self.sentence:
            said = self.sentence if self.code == INTERRUPTED else f"error: {self.sentence}"
            print(said, file=sys.stderr)
        if self.rows:
            print(f"\n{table([self.header, *self.rows])}", file=sys.stderr)

    def as_json(self, done: Sequence[Done]) -> dict[str, Any]:
        """For --json; docs/export.md has the keys."""
        answer: dict[str, Any] = {"status": STATUS.get(self.code, "refused"), "exit_code": self.code}
        if self.sentence:
            answer["error"] = self.sentence
        if self.rows:
            answer["worst"] = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        if self.result is not None:
            answer |= self.result.as_json()
        if self.next:
            answer["next"] = self.next
        return {**answer, **self.more, "stages": stages(done)}


def outcome_of(error: BaseException) -> Outcome | None:
    """What a run comes to that `error` ends; None where it is a defect, or ends the program."""
    if isinstance(error, ParityFailed):
        return Outcome(error.exit_code, str(error), error.header, error.rows)
    if isinstance(error, Refused):
        return Outcome(error.exit_code, str(error))
    if isinstance(error, BundleError):
        return Outcome(REFUSED, str(error))
    if isinstance(error, MissingPackage):  # of a task: one that the project installs, or one that a fork's task brought
        known = refusal_of(error.__cause__) if error.__cause__ is not None else None
        return Outcome(UNAVAILABLE, str(known or error))
    if isinstance(error, (SystemExit, GeneratorExit)):
        return None
    if isinstance(error, KeyboardInterrupt) or interrupts.came():  # inside a library that made something else of it
        return Outcome(INTERRUPTED, NOTHING_WRITTEN)
    refused = refusal_of(error)
    return None if refused is None else Outcome(refused.exit_code, str(refused))


def plans_added(bundle: Bundle, names: Sequence[str]) -> dict[str, Any]:
    """For --json: what the commands say that add the plans `names` to `bundle`."""
    plans = {name: bundle.manifest.files[name][0] for name in names}
    return {"bundle": str(bundle.path), "sha256": bundle.sha256, "plans": plans}
