"""Writes the tables of the README from where they come: the settings' declarations and the committed results."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import peers
from engine.config import settings_table

README = Path("README.md")
RESULTS = Path("benchmarks/results")

TABLES: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "peers": lambda: peers.table(json.loads((RESULTS / "peers-cpu.json").read_text())),
}


def rendered(text: str) -> str:
    """`text` with every table between its markers made anew. Raises ValueError where a marker is missing."""
    for name, table in TABLES.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"the README lacks the markers {begin.strip()} and {end}")
        made = f"{begin}{table()}\n{end}"
        text = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: made, text, flags=re.DOTALL)  # noqa: B023
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def main(args: argparse.Namespace) -> int:
    """Rewrite the README in place."""
    README.write_text(rendered(README.read_text()))
    return 0
