"""One line an event on standard output: JSON on RunPod, whose console parses it, text elsewhere.

From the level on that RUNPOD_LOG_LEVEL says, or its older name RUNPOD_DEBUG_LEVEL, as for the SDK's own lines.
"""

from __future__ import annotations

import os
from typing import Any

LOG_LEVELS = ("ERROR", "WARN", "INFO", "DEBUG", "TRACE", "NOTSET")
"""The SDK's, which takes them in small letters as well. Each has more lines than the one before; NOTSET has none."""
OF_LEVEL = ("RUNPOD_LOG_LEVEL", "RUNPOD_DEBUG_LEVEL")
"""The variables; the second is the SDK's older name, which counts without the first."""


def _is_wanted(level: str) -> bool:
    """Before handler/sdk_environ.py has refused what is no level, everything is."""
    most = next((given for name in OF_LEVEL if (given := os.environ.get(name, "").strip().upper())), "INFO")
    if most == "NOTSET":
        return False
    return most not in LOG_LEVELS or LOG_LEVELS.index(level) <= LOG_LEVELS.index(most)


def log(level: str, message: str, job_id: str | None = None, **fields: Any) -> None:
    """Print `message`, unless `level` (ERROR, WARN, INFO) is not wanted; `fields` follow as JSON.

    Flushed, so that nothing is lost when the process is killed.

    Never raises: a full disk, or a reader that has gone, costs the line and not the job that it is about.
    """
    if not _is_wanted(level):
        return
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
