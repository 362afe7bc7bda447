"""What holds for every page of the project, whatever it is about."""

import re
from pathlib import Path

import pytest

from benchmarks import readme

PAGES = [*readme.pages(), Path("CHANGELOG.md")]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_page_holds_both_sides_of_a_merge(page: Path):
    assert not re.search(r"^(<{7}|={7}|>{7})( |$)", page.read_text(), re.M)


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
