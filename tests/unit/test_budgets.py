"""Budgets: what may be written, what is held against them, and what is said when one is exceeded."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import batching, budgets, quick
from benchmarks.results_file import Measurement, Results, read, write

RESULTS = Results(
    {"commit": "a"},
    {},
    (
        Measurement("load", "ours", "idle", "p50_ms", "ms", "lower", (30.0, 20.0, 40.0), ("floor", "idle", "p50_ms")),
        Measurement("load", "floor", "idle", "p50_ms", "ms", "lower", (20.0, 10.0, 20.0)),
        Measurement("load", "ours", "1 client", "jobs_per_s", "jobs/s", "higher", (None, 50.0)),
        Measurement("soak", "ours-fake", "mixed jobs", "fds", "", "lower", (14.0, 15.0, 14.0)),
    ),
)


def budget(point: str = "idle", metric: str = "p50_ms", **limit: float) -> budgets.Budget:
    return budgets.Budget("load", "ours", point, metric, "because", **limit)


@pytest.mark.parametrize(
    ("one", "value", "kept", "used"),
    [
        (budget(at_most=2.0), 2.0, True, 1.0),
        (budget(at_most=1.9), 2.0, False, 2 / 1.9),
        (budget("1 client", "jobs_per_s", at_least=40), 50.0, True, 0.8),
        (budget("1 client", "jobs_per_s", at_least=60), 50.0, False, 1.2),
    ],
)
def test_ratios_are_limited_where_there_is_a_floor_and_else_values(
    one: budgets.Budget, value: float, kept: bool, used: float
):
    (outcome,) = budgets.check(RESULTS, [one])
    assert (outcome.value, outcome.kept, outcome.is_ratio) == (value, kept, one.point == "idle")
    assert one.used(value) == pytest.approx(used)


def test_what_ran_without_the_figure_is_over_and_what_did_not_run_is_left_out():
    renamed = budget("32 clients", at_most=1.0)
    other = budgets.Budget("coldstart", "ours", "warm", "first_take_s", "because", at_most=1.0)
    (outcome,) = budgets.check(RESULTS, [renamed, other])
    assert (outcome.value, outcome.kept) == (None, False)
    assert "not measured" in budgets.table([outcome])


def test_a_complaint_names_scenario_figure_limit_and_reason():
    outcomes = budgets.check(RESULTS, [budget(at_most=1.5), budget("1 client", "jobs_per_s", at_least=1)])
    assert budgets.complaints(outcomes) == [
        "OVER BUDGET load: ours, idle, p50_ms is 2, at most 1.5 is allowed (because)"
    ]
    assert [line.split("|")[1].strip() for line in budgets.table(outcomes).splitlines()[2:]] == ["OVER", ""]


def test_the_committed_budgets_can_be_read_and_are_each_for_another_figure():
    found = budgets.read()
    assert len({one.key for one in found}) == len(found) > 10
    assert all(one.reason for one in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no .*budget"),
        ("[[budget", "holds no .*budget"),
        ('[[budget]]\nscenario = "load"\nat_most = 1', "this one is {'scenario': 'load', 'at_most': 1}"),
        (
            '[[budget]]\nscenario="a"\ntarget="b"\npoint="c"\nmetric="d"\nreason="e"\nat_most=1\nat_least=1',
            "at_most or at_least",
        ),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, message: str):
    (tmp_path / "b.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        budgets.read(tmp_path / "b.toml")


def run(module: object, *arguments: object) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)  # type: ignore[attr-defined]
    code: int = module.main(parser.parse_args([str(one) for one in arguments]))  # type: ignore[attr-defined]
    return code


def test_what_cannot_be_judged_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(quick, "--budgets", tmp_path / "missing.toml") == 2
    (tmp_path / "old.json").write_text("{}")
    assert run(quick, "--baseline", tmp_path / "old.json") == 2
    write(tmp_path / "other.json", Results({}, {}, ()))
    assert run(quick, "--parts", "soak", "--baseline", tmp_path / "other.json") == 2
    missing, old, other = capsys.readouterr().err.splitlines()
    assert "missing.toml" in missing
    assert "measure it anew" in old
    assert "other.json holds nothing that the parts soak measure" in other


def test_a_baseline_of_another_worker_is_told_before_anything_is_measured(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """`load-fake` and `load` measure one scenario, of another target each."""
    write(tmp_path / "load.json", Results({}, {}, RESULTS.of("load")))
    monkeypatch.setattr(quick, "measure", lambda args: pytest.fail("it went on"))
    asked = ["--bundle", small_bundle, "--baseline", tmp_path / "load.json", "--parts"]
    assert run(quick, *asked, "load-fake", "soak") == 2
    assert "load.json holds nothing that the parts load-fake, soak measure" in capsys.readouterr().err
    int8 = [replace(one, target="ours-int8") for one in RESULTS.of("load")]
    monkeypatch.setattr(quick, "measure", lambda args: Results({}, {}, tuple(int8)))
    assert run(quick, *asked, "load") == 2  # which precision a worker has is seen when it runs
    assert "quick: the files have no measurement of ours* in common" in capsys.readouterr().err


def test_the_batches_of_a_job_are_counted(small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "batching.json"
    options = ("--rounds", 2, "--bulk-rows", 64, "--seconds", 0.1, "--engine", "fake", "--bundle", small_bundle)
    assert run(batching, *options, "--json", out) == 0
    results = read(out)
    runs = results.find(("batching", "ours-fake", "bulk", "runs_per_row"))
    padding = results.find(("batching", "ours-fake", "bulk", "padding"))
    assert runs and padding
    assert runs.repeats == (2 / 64, 2 / 64)  # the longest rows of the toy model fill batches of 32
    assert padding.repeats == (1.0, 1.0)
    assert "| ours-fake, 32 clients " in capsys.readouterr().out


def test_the_page_is_made_from_the_committed_budgets_and_results():
    page = quick.PAGE.read_text()
    assert quick.rendered(page) == page, "run `python -m benchmarks quick --tables`"
    with pytest.raises(ValueError, match="lacks the markers"):
        quick.rendered("nothing")


def test_the_committed_run_keeps_every_budget():
    outcomes = budgets.check(read(quick.RESULTS), budgets.read())
    assert len(outcomes) == len(budgets.read())
    assert budgets.complaints(outcomes) == []
