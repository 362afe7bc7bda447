"""Inputs of the user's own for the gate: a file with the `input` of a job on every line, in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import InvalidInput
from export.command.arguments import check_file
from export.errors import Refused

if TYPE_CHECKING:
    from engine.bundle import Bundle

_MOST_MB = 1000
_SHOWN = 60
_OF_EVERY_JOB = ("timings", "stream", "progress")
"""What a worker takes out of a job's input before its task sees it."""


def check_payload_file(file: Path) -> None:
    """Raise Refused where there is no such file, before the model is loaded; what stands in it is checked later."""
    try:
        check_file(file, _MOST_MB)
    except OSError as error:
        raise Refused(f"--parity-data {file} cannot be read ({error.strerror}); name a file of JSON lines") from None


def read_payloads(file: Path | None, bundle: Bundle) -> list[tuple[str, Any]]:
    """A label and a payload for every line that is not empty; none without a file.

    Raises Refused, with the number of the line and the fix, for a line that the task of `bundle` does not take.
    """
    if file is None:
        return []
    from engine.tasks import load_task
    from engine.tasks.payload import refuse_lone_surrogates

    check_payload_file(file)
    task = load_task(bundle)
    try:
        # Not splitlines: a string in JSON may hold U+2028, U+0085 and others that end a line there.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise Refused(f"--parity-data {file} is not UTF-8; save it as UTF-8") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            payload = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Refused(
                f"{file}, line {number}: not JSON ({error}); write a job's input, such as {_example(bundle)}"
            ) from None
        try:
            if not isinstance(payload, dict):
                raise InvalidInput(f"an object is needed, got {type(payload).__name__}")
            refuse_lone_surrogates(payload)
            payload = {name: value for name, value in payload.items() if name not in _OF_EVERY_JOB}
            task.preprocess(task.parse(payload))
        except InvalidInput as error:
            raise Refused(f"{file}, line {number}: {error}; write a job's input, such as {_example(bundle)}") from None
        found.append((f"{file.name}:{number}", payload))
    if not found:
        raise Refused(f"--parity-data {file} holds no line; write a job's input on each, such as {_example(bundle)}")
    return found


def _example(bundle: Bundle) -> str:
    from engine.tasks import task_class

    text = json.dumps(task_class(bundle.manifest.task).examples[0], ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
