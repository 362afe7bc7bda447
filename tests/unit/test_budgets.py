"""Budgets: what may be written, what is held against them, and what is said when one is exceeded."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import budgets, quick
from benchmarks.__main__ import main
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


FDS = (
    '[[budget]]\nscenario = "soak"\ntarget = "ours-fake"\npoint = "mixed jobs"\nmetric = "fds"\n'
    'at_most = 24\nreason = "because"\n'
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
        (budget(at_most=0), 2.0, False, math.inf),
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


def test_a_budget_of_ours_holds_at_every_precision_and_one_of_a_precision_only_there():
    int8 = [replace(one, target=f"{one.target}-int8") for one in RESULTS.measurements if one.target != "floor"]
    results = replace(RESULTS, measurements=(*int8, *RESULTS.of("load")[1:2]))
    fake = budgets.Budget("soak", "ours-fake", "mixed jobs", "fds", "because", at_most=13)
    held, over = budgets.check(results, [budget(at_most=2.0), fake])
    assert (held.value, held.is_ratio, held.kept) == (2.0, True, True)
    assert budgets.complaints([held, over]) == [
        "OVER BUDGET soak: ours-fake-int8, mixed jobs, fds is 14, at most 13 is allowed (because)"
    ]
    special = replace(budget(at_most=2.0), target="ours-int8")
    assert len(budgets.check(results, [special])) == 1
    assert budgets.check(RESULTS, [special]) == []


def test_a_run_that_no_budget_is_of_is_not_called_good(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "b.toml").write_text(FDS)
    asked = ["--bundle", small_bundle, "--budgets", tmp_path / "b.toml"]
    monkeypatch.setattr(quick, "measure", lambda args: pytest.fail("it went on"))
    assert run("quick", *asked, "--parts", "load", "load-fake", "batching") == 2
    assert "b.toml has no limit for what the parts load, load-fake, batching measure" in capsys.readouterr().err
    (tmp_path / "b.toml").write_text(FDS.replace("ours-fake", "ours-fake-int8"))
    monkeypatch.setattr(quick, "measure", lambda args: RESULTS)
    assert run("quick", *asked) == 2
    said = capsys.readouterr()
    assert "budgets kept" not in said.out
    assert "b.toml has no limit for load of ours, soak of ours-fake; name a file" in said.err


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
        ('[budget]\nscenario = "load"', r"entries with \[\[budget\]\] above each"),
        (FDS.replace("24", '"24"'), "at_most of a budget is a number, not '24'"),
        (FDS.replace("24", "nan"), "at_most of a budget is a number, not nan"),
        (FDS.replace("24", "true"), "at_most of a budget is a number, not True"),
        (FDS.replace('"because"', "7"), "reason of a budget is a text, not 7"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, message: str):
    (tmp_path / "b.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        budgets.read(tmp_path / "b.toml")


def test_nothing_may_be_the_most_that_is_allowed():
    none = Results({}, {}, (Measurement("soak", "ours", "p", "wrong", "", "lower", (0.0,)),))
    (outcome,) = budgets.check(none, [budgets.Budget("soak", "ours", "p", "wrong", "because", at_most=0)])
    assert outcome.kept
    assert "| 0% " in budgets.table([outcome])


def run(*command: object) -> int:
    return main([str(one) for one in command])


def test_what_cannot_be_judged_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("quick", "--budgets", tmp_path / "missing.toml") == 2
    (tmp_path / "old.json").write_text("{}")
    assert run("quick", "--baseline", tmp_path / "old.json") == 2
    write(tmp_path / "other.json", Results({}, {}, ()))
    assert run("quick", "--parts", "soak", "--baseline", tmp_path / "other.json") == 2
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
    assert run("quick", *asked, "load-fake", "soak") == 2
    assert "load.json holds nothing that the parts load-fake, soak measure" in capsys.readouterr().err
    int8 = [replace(one, target="ours-int8") for one in RESULTS.of("load")]
    monkeypatch.setattr(quick, "measure", lambda args: Results({}, {}, tuple(int8)))
    assert run("quick", *asked, "load") == 2  # which precision a worker has is seen when it runs
    assert "quick: the files have no measurement of ours* in common" in capsys.readouterr().err


def test_what_failed_fails_a_run_that_keeps_its_budgets(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "b.toml").write_text(FDS)
    counts = [
        {"target": "ours", "point": "idle", "jobs": [20, 20], "errors": [0, 0]},
        {"target": "ours", "point": "1 client", "jobs": [300, 310], "errors": [4, 3]},
    ]
    details = {"load": {"counts": counts}, "coldstart": {"stages": {}}, "soak": {"complaints": ["files grew", "b"]}}
    monkeypatch.setattr(quick, "measure", lambda args: replace(RESULTS, details=details))
    assert run("quick", "--bundle", small_bundle, "--budgets", tmp_path / "b.toml") == 1
    said = capsys.readouterr().out
    assert "OVER" not in said
    assert said.splitlines()[-2:] == [
        "FAILED load: 7 jobs failed at ours, 1 client",
        "FAILED soak: files grew; b",
    ]


def test_the_batches_of_a_job_are_counted(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MAX_BATCH_ROWS", "32")
    out = tmp_path / "batching.json"
    options = ("--rounds", 2, "--bulk-rows", 64, "--seconds", 0.1, "--engine", "fake", "--bundle", small_bundle)
    assert run("batching", *options, "--json", out) == 0
    results = read(out)
    runs = results.find(("batching", "ours-fake", "bulk", "runs_per_row"))
    padding = results.find(("batching", "ours-fake", "bulk", "padding"))
    assert runs and padding
    assert runs.repeats == (2 / 64, 2 / 64)  # the longest rows of the toy model fill batches of 32
    assert padding.repeats == (1.0, 1.0)
    assert "| ours-fake, 32 clients " in capsys.readouterr().out


def test_the_committed_run_keeps_every_budget():
    outcomes = budgets.check(read(quick.RESULTS), budgets.read())
    assert len(outcomes) == len(budgets.read())
    assert budgets.complaints(outcomes) == []
    assert quick.failures(read(quick.RESULTS)) == []
