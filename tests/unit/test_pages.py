"""What holds for every page of the project, whatever it is about."""

import re
from pathlib import Path

import pytest

from benchmarks import readme


@pytest.mark.parametrize("page", [*readme.pages(), Path("CHANGELOG.md")], ids=str)
def test_no_page_holds_both_sides_of_a_merge(page: Path):
    assert not re.search(r"^(<{7}|={7}|>{7})( |$)", page.read_text(), re.M)
