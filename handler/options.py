"""What a job may ask for whatever its task is. Rule: imports nothing."""

from __future__ import annotations

from typing import Any


def asks(job: dict[str, Any], option: str) -> bool:
    """Whether `job` sets one of the options that are for every task, e.g. "stream"."""
    payload = job.get("input")
    return isinstance(payload, dict) and payload.get(option) is True
