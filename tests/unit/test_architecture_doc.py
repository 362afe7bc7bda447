"""docs/architecture.md names what is there, and links lead somewhere in every page."""

import re
from importlib import import_module
from pathlib import Path

import pytest

PAGE = Path("docs/architecture.md").read_text()
PAGES = [Path("README.md"), Path("CHANGELOG.md"), *sorted(Path("docs").glob("*.md"))]
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


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = page.parent / name if name else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target
