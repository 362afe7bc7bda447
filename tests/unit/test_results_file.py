import math
import shutil
from pathlib import Path

import pytest

from benchmarks.results_file import Measurement, Results, environment, read, write


def _measurement(target="ours", repeats=(100.0, 120.0), floor=None):
    return Measurement("load", target, "1 client", "jobs_per_s", "jobs/s", "higher", repeats, floor)


def test_a_file_reads_back_as_it_was_written(tmp_path):
    results = Results(
        environment(), {"seed": 0}, (_measurement(floor=("floor", "1 client", "jobs_per_s")),), {"a": [1]}
    )
    write(tmp_path / "sub" / "r.json", results)
    again = read(tmp_path / "sub" / "r.json")
    assert again.measurements == results.measurements
    assert again.details == {"a": [1]}
    assert again.environment["commit"] == results.environment["commit"]


def test_the_commit_is_named_where_there_is_git(monkeypatch: pytest.MonkeyPatch):
    """A source archive has none, nor has every machine."""
    if Path(".git").exists() and shutil.which("git"):
        assert environment()["commit"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert environment()["commit"] is None


def test_ratios_are_of_the_same_round():
    ours = _measurement(repeats=(50.0, None, 90.0), floor=("floor", "1 client", "jobs_per_s"))
    results = Results({}, {}, (ours, _measurement("floor", (100.0, 100.0, 120.0))))
    assert results.ratios(ours) == (0.5, 0.75)
    assert results.ratios(_measurement()) == ()


def test_a_missing_figure_has_no_median():
    assert math.isnan(_measurement(repeats=(None, None)).median)
    assert _measurement(repeats=(None, 3.0)).median == 3.0


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema_version": 99}', "no json"])
def test_another_file_is_refused_with_what_to_do(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match="measure it anew"):
        read(tmp_path / "r.json")


@pytest.mark.timeout(20)
def test_a_file_without_an_end_is_not_read():
    with pytest.raises(ValueError, match="/dev/zero is not a file"):
        read(Path("/dev/zero"))
