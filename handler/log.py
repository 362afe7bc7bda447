"""One line an event on standard output: JSON on RunPod, whose console parses it, text elsewhere.

From the level on that RUNPOD_LOG_LEVEL says, or its older name RUNPOD_DEBUG_LEVEL, as for the SDK's own lines.
"""

from __future__ import annotations

import os
import time
from typing import Any

LOG_LEVELS = ("ERROR", "WARN", "INFO", "DEBUG", "TRACE", "NOTSET")
"""The SDK's, which takes them in small letters as well. Each has more lines than the one before; NOTSET has none."""
OF_LEVEL = ("RUNPOD_LOG_LEVEL", "RUNPOD_DEBUG_LEVEL")
"""The variables; the second is the SDK's older name, which counts without the first."""
_LONG_S = 10.0


def _is_wanted(level: str) -> bool:
    """Before handler/protocol/sdk_environ.py has refused what is no level, everything is."""
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


class Progress:
    """Lines about what takes `_LONG_S`: how much of `size` bytes is done; again when it has taken twice as long."""

    def __init__(self, size: int | None) -> None:
        self._size, self._done = size, 0
        self._began, self._due_s = time.monotonic(), _LONG_S

    def add(self, done: int, what: str) -> None:
        """`done` bytes more; `what` begins the line. In any thread, of which two may say the same."""
        self._done += done
        if (seconds := time.monotonic() - self._began) >= self._due_s:
            self._due_s *= 2
            from engine.sizes import readable

            of = f" of {readable(self._size)}" if self._size else ""
            log("INFO", f"{what}: {readable(self._done)}{of}", seconds=round(seconds, 1))


class Seldom:
    """Lines that an outage would repeat for every job: the first `most`, then one in `every_s` that counts the rest."""

    def __init__(self, most: int = 10, every_s: float = 10.0) -> None:
        self._most, self._every_s = most, every_s
        self._allowed, self._seen_at = float(most), time.monotonic()
        self._left_out = 0

    def log(self, level: str, message: str, job_id: str | None = None) -> None:
        """As `log`, or nothing."""
        now = time.monotonic()
        self._allowed = min(self._most, self._allowed + (now - self._seen_at) / self._every_s)
        self._seen_at = now
        if self._allowed < 1:
            self._left_out += 1
            return
        self._allowed -= 1
        more = f" (and {self._left_out} such lines left out)" if self._left_out else ""
        self._left_out = 0
        log(level, message + more, job_id)
