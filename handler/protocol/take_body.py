"""The jobs in a reply to a take that Python's JSON reader refuses as a whole. Imported when there is one.

The platform's reader takes JSON that is nested a thousand levels deep, and numbers of five thousand digits; Python's
does not, nor a byte order mark. The SDK then drops the reply, and with one caller's job those of all others in the
batch: nobody would answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

UNREADABLE = "unreadable"
"""The field of a job that could not be read, in place of `input`: a sentence for its caller."""

# A string in which a cut reply ends is a token, too: else each escaped quote in it would be tried as the start of a
# string, and read to the end of the reply.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{},:]', re.DOTALL)
_WHY = "it is nested too deeply, or holds a number of too many digits"


def salvage(body: bytes) -> list[dict[str, Any]]:
    """The jobs in `body`, an object or a list of them; of one that cannot be read its id, and why. Garbage has none."""
    text = body.decode("utf-8-sig", "replace")
    found = (_job(text[begin:end], job_id) for begin, end, job_id in _objects(text))
    return [job for job in found if job is not None]


def _job(text: str, job_id: str | None) -> dict[str, Any] | None:
    try:
        job = json.loads(text)
    except (ValueError, RecursionError):
        return {"id": job_id, UNREADABLE: f"the job cannot be read: {_WHY}"} if job_id else None
    return job if "id" in job else None


def _objects(text: str) -> Iterator[tuple[int, int, str | None]]:
    """Where each whole object that is the reply, or stands in its list, begins and ends, and its field `id`."""
    top = 1 if text.lstrip().startswith("[") else 0
    depth, begin, job_id = 0, 0, None
    last, name = "", ""  # what came before, and the field whose value is read, both of the object itself
    for match in _TOKEN.finditer(text):
        found = match[0]
        if found in "[{":
            if depth == top:
                begin, job_id, name = match.start(), None, ""
            depth += 1
        elif found in "]}":
            depth -= 1
            if depth == top and found == "}" and text[begin] == "{":
                yield begin, match.end(), job_id
        elif depth != top + 1:
            continue
        elif found == ":":
            name = last
        elif found == ",":
            name = ""
        elif name == '"id"':
            with suppress(ValueError):
                job_id = json.loads(found, strict=False)
        last = found
