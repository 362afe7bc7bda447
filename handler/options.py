"""What a job may ask for whatever its task is. Rule: imports nothing."""

from __future__ import annotations

from typing import Any


def is_health(job: dict[str, Any]) -> bool:
    """Whether `job` asks how the worker is, and for nothing else."""
    return bool(job.get("input") == {"health": True})


def asks(job: dict[str, Any], option: str) -> bool:
    """Whether `job` sets one of the options that are for every task, e.g. "stream"."""
    payload = job.get("input")
    return isinstance(payload, dict) and payload.get(option) is True
