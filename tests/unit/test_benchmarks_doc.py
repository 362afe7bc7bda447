"""docs/benchmarks.md: its commands exist and take what the page gives them."""

from __future__ import annotations

import argparse
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.pages import page

PAGE = page("docs/benchmarks.md")
LINES = re.findall(r"^    python -m benchmarks (\S.*?)(?:   .*)?$", PAGE, re.MULTILINE)
STANDS_FOR = {"FILES": "a.json", "DIR": "out", "MS": "50", "PRICE": "0.4"}


@pytest.mark.parametrize("line", LINES)
def test_a_command_takes_its_options(line: str, small_bundle: Path):
    name, *words = line.split()
    if find_spec(f"benchmarks.{name}") is None:
        pytest.fail(f"there is no command {name}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    import_module(f"benchmarks.{name}").add_arguments(parser)
    parser.parse_args([{**STANDS_FOR, "BUNDLE": str(small_bundle)}.get(word, word) for word in words])


def test_the_page_opens_with_what_to_measure_and_what_to_make_of_it():
    assert [line.split()[0] for line in LINES[:5]] == ["load", "throughput", "accuracy", "report", "recommend"]


def test_what_is_measured_on_a_gpu_has_its_plan_before_it():
    """`load` serves ONNX Runtime where the bundle has none."""
    plan = PAGE.index("    python -m export plan BUNDLE")
    for command in ("load", "throughput", "accuracy"):
        assert plan < PAGE.index(f"    python -m benchmarks {command} --bundle BUNDLE ")
