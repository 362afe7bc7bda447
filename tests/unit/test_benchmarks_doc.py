"""docs/benchmarks.md: its commands exist and take what the page gives them."""

from __future__ import annotations

import argparse
import re
from importlib import import_module
from pathlib import Path

import pytest

PAGE = Path("docs/benchmarks.md").read_text()
LINES = re.findall(r"^    python -m benchmarks (\S.*?)(?:   .*)?$", PAGE, re.MULTILINE)
STANDS_FOR = {"FILES": "a.json", "DIR": "out", "MS": "50", "PRICE": "0.4"}


@pytest.mark.parametrize("line", LINES)
def test_a_command_takes_its_options(line: str):
    name, *words = line.split()
    parser = argparse.ArgumentParser(exit_on_error=False)
    import_module(f"benchmarks.{name}").add_arguments(parser)
    parser.parse_args([STANDS_FOR.get(word, word) for word in words])


def test_the_page_has_the_four_steps():
    assert [line.split()[0] for line in LINES[:4]] == ["load", "latency", "report", "recommend"]
