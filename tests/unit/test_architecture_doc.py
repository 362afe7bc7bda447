"""docs/architecture.md names what is there."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.pages import page

PAGE = page("docs/architecture.md")
FILES = sorted(set(re.findall(r"\b(?:engine|export|handler|tests)/[a-z0-9_/]+\.py\b", PAGE)))
# A line of the diagram: a file, and the names in it that it speaks of.
NAMED = re.findall(r"^ .* ((?:engine|export|handler)/[\w/]+\.py) +([\w., ]+)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_there(file: str):
    assert Path(file).is_file()


def test_every_package_is_named():
    there = [path.parent for part in ("engine", "export", "handler") for path in Path(part).glob("*/__init__.py")]
    assert not [str(folder) for folder in there if not re.search(rf"\b{folder}\b", PAGE)]


@pytest.mark.parametrize(("file", "names"), NAMED)
def test_a_name_is_in_its_file(file: str, names: str):
    module = import_module(file.removesuffix(".py").replace("/", "."))
    for name in names.split(", "):
        found = module
        for part in name.split("."):
            found = getattr(found, part)


def test_the_diagram_was_read():
    assert len(NAMED) >= 12
    assert ("engine/batching/batch_queue.py", "BatchQueue.pop") in NAMED
