"""The pages that tests hold against the code."""

from __future__ import annotations

from pathlib import Path

import pytest


def page(name: str) -> str:
    """The text of a page; skips the test, or all of the file that asks at its top, where a fork has removed it."""
    if not Path(name).exists():
        pytest.skip(f"a fork may have removed {name}", allow_module_level=True)
    return Path(name).read_text()
