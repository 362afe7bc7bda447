"""The end of processes that a test did not start itself."""

import time
from pathlib import Path

import pytest


def wait_until_dead(pid: int) -> None:
    """Fail the test when the process still runs after 10 s; one that its new parent has not collected yet is dead."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} still runs")
