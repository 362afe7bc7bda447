"""What this machine does about pages of 2 MB (https://docs.kernel.org/admin-guide/mm/transhuge.html)."""

from __future__ import annotations

import os
from pathlib import Path

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")

KNOWN = _ENABLED.exists()
"""Whether its kernel has them."""
AT_ONCE = tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2]) >= (6, 1)
"""Whether small ones can be put together at once: MADV_COLLAPSE."""
ON_REQUEST_ALONE = KNOWN and AT_ONCE and "[madvise]" in _ENABLED.read_text()
"""Whether those who ask get them, and nobody else."""


def huge_kb(process: str | int = "self") -> int:
    """kB that a process holds in them, of no file."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))
