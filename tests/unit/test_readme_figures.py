"""Tables and figures between markers, from files that were invented for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.report.stored import Stored, stored
from benchmarks.results_file import write
from tests.results import peers


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    path = tmp_path_factory.mktemp("results") / "peers-cpu.json"
    write(path, peers())
    return stored([path])


def test_a_figure_and_a_ratio_stand_in_a_sentence(known: Stored):
    key = "peers-cpu peers/ours/idle/p50_ms"
    text = f"It takes <!-- figure {key} -->9<!-- /figure -->, <!-- ratio {key} stock -->?<!-- /ratio --> less."
    made = readme.rendered(text, known)
    assert "-->12 ms<!-- /figure -->" in made
    assert "stock -->24x<!-- /ratio -->" in made
    assert readme.rendered(made, known) == made


def test_the_peers_have_a_line_each_with_how_many_times_better_ours_is(known: Stored):
    made = readme.rendered("a\n<!-- begin peers -->\nan older table\n<!-- end peers -->\nb\n", known)
    assert "| stock SDK + sentence-transformers | 12 s (24x) |" in made
    assert "| this worker | 0.5 s |" in made
    assert "older" not in made
    assert "Medians of 3 rounds on Invented, 2 CPUs, 2026-01-02, commit 0123456789ab" in made
    assert made.startswith("a\n") and made.endswith("\nb\n")


@pytest.mark.parametrize("name", ["peers", "demo"])
def test_without_a_file_the_table_says_what_makes_it_and_no_figure(name: str):
    made = readme.rendered(f"<!-- begin {name} -->\n12 ms\n<!-- end {name} -->", Stored([]))
    assert "Not measured yet: `python -m benchmarks " in made
    assert "12 ms" not in made


def test_without_a_file_a_figure_says_so():
    assert ">not measured yet<" in readme.rendered("<!-- figure a b/c/d/e -->12 ms<!-- /figure -->", Stored([]))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<!-- begin nothing -->\n<!-- end nothing -->", "there is no table 'nothing'"),
        ("<!-- begin peers -->\n", "each needs the other"),
        ("<!-- figure peers-cpu p50 -->1 ms<!-- /figure -->", "SCENARIO/TARGET/POINT/METRIC"),
        ("<!-- figure peers-cpu a/b/c/d -->1 ms", "each needs the other"),
    ],
)
def test_a_wrong_marker_is_an_error(known: Stored, text: str, why: str):
    with pytest.raises(ValueError, match=why):
        readme.rendered(text, known)


def test_the_command_rewrites_pages_and_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from benchmarks.__main__ import main

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "benchmarks/results/peers-cpu.json", peers())
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("<!-- begin peers -->\n<!-- end peers -->\n")
    (tmp_path / "docs/a.md").write_text("nothing to write\n")
    assert main(["readme"]) == 0
    assert capsys.readouterr().out == "README.md changed\n"
    assert "(24x)" in (tmp_path / "README.md").read_text()
    assert main(["readme"]) == 0
    assert capsys.readouterr().out == ""


def test_a_page_that_a_fork_removed_is_left_out(tmp_path: Path):
    readme.write(tmp_path / "tasks.md")
    assert list(tmp_path.iterdir()) == []
