"""One line an event on standard output: JSON on RunPod, whose console parses it, text elsewhere."""

from __future__ import annotations

import os
from typing import Any


def log(level: str, message: str, job_id: str | None = None, **fields: Any) -> None:
    """Print `message`; `fields` follow as JSON. Flushed, so that nothing is lost when the process is killed.

    Never raises: a full disk, or a reader that has gone, costs the line and not the job that it is about.
    """
    import json  # not at the top: this module is imported before the fork

    if os.environ.get("RUNPOD_ENDPOINT_ID"):
        line = json.dumps({"requestId": job_id, "level": level, "message": message, **fields}, default=str)
    else:
        details = f" {json.dumps(fields, default=str)}" if fields else ""
        line = f"{level:<5} | {f'{job_id} | ' if job_id else ''}{message}{details}"
    try:
        try:
            print(line, flush=True)
        except UnicodeEncodeError:  # what a caller sent, under a locale that has no word for it
            print(line.encode("ascii", "backslashreplace").decode(), flush=True)
    except (OSError, ValueError):
        pass
