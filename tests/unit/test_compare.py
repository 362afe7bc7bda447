"""What is called worse, and what is not."""

import argparse
import json
import math
from collections.abc import Sequence
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import compare
from benchmarks.__main__ import main
from benchmarks.results_file import Measurement, Results, write
from benchmarks.rounds import unit
from benchmarks.shift import critical_rank, shift, u_counts


def test_the_counts_of_u_are_those_of_all_orders():
    for first, second in ((1, 1), (2, 3), (4, 4), (3, 6)):
        counts = [0] * (first * second + 1)
        for places in combinations(range(first + second), first):
            counts[sum(places) - first * (first - 1) // 2] += 1
        assert u_counts(first, second) == counts


@pytest.mark.parametrize(
    ("first", "second", "rank"),
    # Tables of U, one-sided at 5 %: the critical value, plus one for the rank.
    [(2, 2, 0), (3, 3, 1), (4, 4, 2), (5, 5, 5), (10, 10, 28), (1, 19, 1), (1, 18, 0), (3, 5, 2)],
)
def test_the_ranks_are_those_of_published_tables(first: int, second: int, rank: int):
    assert critical_rank(first, second, 0.05) == rank


def test_the_bounds_are_ratios_at_their_ranks():
    assert shift([1, 2, 4], [8, 8, 16], 0.95) == (4.0, 2.0, 16.0)
    assert shift([1, 2], [8, 8], 0.95) == (6.0, -math.inf, math.inf)
    assert shift([2.0] * 5, [4.0] * 5, 0.95) == (2.0, 2.0, 2.0)


def test_around_zero_differences_are_taken():
    assert shift([-1, 1, 1], [2, 2, 2], 0.95) == (2.0, 2.0, 4.0)
    assert shift([0, 0, 0], [0, 0, 0], 0.95) == (1.0, 1.0, 1.0)
    assert shift([0, 0, 0], [3, 3, 3], 0.95).low == 4.0


def test_nothing_cannot_be_compared():
    with pytest.raises(ValueError, match="no values"):
        shift([], [1.0], 0.95)


positive = st.lists(st.floats(0.1, 1e3), min_size=3, max_size=8)


@given(positive, positive)
def test_swapping_the_samples_inverts_the_factor(before: list[float], after: list[float]):
    there, back = shift(before, after, 0.9), shift(after, before, 0.9)
    assert there.low <= there.factor <= there.high
    assert [there.low * back.high, there.high * back.low] == pytest.approx([1, 1])


def test_the_bounds_hold_as_often_as_they_say():
    """Of 400 pairs of samples without a difference, some 5 % have a lower bound above 1."""
    import random

    draw = random.Random(0)
    wrong = sum(
        shift(
            [draw.lognormvariate(0, 0.3) for _ in range(5)], [draw.lognormvariate(0, 0.3) for _ in range(5)], 0.95
        ).low
        > 1
        for _ in range(400)
    )
    assert 8 <= wrong <= 30


def results(
    *values: Sequence[float], metric: str = "p50_ms", better: str = "lower", commit: str = "a", **environment: object
) -> Results:
    """One measurement of ours; where there are further values, they are the floor's."""
    floor = ("floor", "idle", metric) if len(values) > 1 else None
    ours = Measurement("load", "ours", "idle", metric, "ms", better, tuple(values[0]), floor)  # type: ignore[arg-type]
    others = tuple(Measurement("load", "floor", "idle", metric, "ms", better, tuple(one)) for one in values[1:])  # type: ignore[arg-type]
    return Results({"commit": commit, **environment}, {"seed": 0}, (ours, *others))


HEALTHY = (10.0, 10.1, 9.9, 10.2)


@pytest.mark.parametrize(
    ("after", "better", "verdict"),
    [
        ((12.0, 12.1, 11.9, 12.2), "lower", compare.WORSE),
        ((12.0, 12.1, 11.9, 12.2), "higher", compare.BETTER),
        ((8.0, 8.1, 7.9, 8.2), "lower", compare.BETTER),
        ((8.0, 8.1, 7.9, 8.2), "higher", compare.WORSE),
        (HEALTHY, "lower", compare.UNCHANGED),
        ((10.4, 10.5, 10.3, 10.6), "lower", compare.NOISY),  # sure to be slower, not by how much
        ((9.0, 30.0, 10.0, 11.0), "lower", compare.NOISY),
        ((30.0, 30.0), "lower", compare.NOISY),  # too few
    ],
)
def test_verdicts(after: tuple[float, ...], better: str, verdict: str):
    (found,) = compare.compare(results(HEALTHY, better=better), results(after, better=better))
    assert found.verdict == verdict


def test_what_fell_to_nothing_has_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Both are 0, which is its own negative as infinities are each other's."""
    ten, none = results([10.0] * 3, better="higher"), results([0.0] * 3, better="higher")
    (found,) = compare.compare(ten, none)
    assert (found.verdict, found.low, found.high) == (compare.WORSE, 0.0, 0.0)
    assert compare.span(found) == "-100% to -100%"
    assert run(ten, none, tmp_path, "--json") == 1
    (told,) = json.loads(capsys.readouterr().out)["findings"]
    assert (told["low"], told["high"]) == (0.0, 0.0)


def test_with_a_floor_a_slower_machine_is_no_change():
    before = results(HEALTHY, (5.0, 5.05, 4.95, 5.1))
    after = results([1.4 * value for value in HEALTHY], [1.4 * value for value in (5.0, 5.05, 4.95, 5.1)])
    (found,) = compare.compare(before, after)
    assert (found.verdict, found.basis, found.before, found.after) == (compare.UNCHANGED, "floor", 2.0, 2.0)
    (plain,) = compare.compare(results(HEALTHY), after)
    assert (plain.verdict, plain.basis) == (compare.WORSE, "value")


@pytest.mark.parametrize("times", [0.5, 1.6])
def test_beside_a_floor_that_is_another_day_s_nothing_is_said(
    times: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A machine that is so much busier slows worker and floor, and not by the same."""
    before = results(HEALTHY, (5.0, 5.05, 4.95, 5.1))
    for ours in (1.5 * times, times, times / 1.5):
        after = results([ours * value for value in HEALTHY], [times * value for value in (5.0, 5.05, 4.95, 5.1)])
        (found,) = compare.compare(before, after)
        assert (found.verdict, found.basis) == (compare.NOISY, "floor")
        assert run(before, after, tmp_path) == 0
        said = f"The floor itself is more than 1.5x apart: load: floor, idle, p50_ms 5.03 / {5.025 * times:.3g};"
        assert said in capsys.readouterr().out
    gone = results([None] * 4, (10.0, 10.1, 9.9, 10.2))  # type: ignore[list-item]  # a round without a value
    assert [one.verdict for one in compare.compare(before, gone)] == [compare.WORSE]


def test_what_a_share_of_the_day_s_best_loop_served_is_not_compared():
    def day(times: float) -> Results:
        found = [
            Measurement("load", "ours", point, metric, *unit(metric), tuple(times * n for n in (1.0, 1.01, 0.99)))
            for point in ("rate 0.25", "rate 20/s")
            for metric in ("jobs_per_s", "p50_ms")
        ]
        return Results({}, {}, tuple(found))

    assert {one.key[2:] for one in compare.compare(day(1.0), day(0.8))} == {
        ("rate 0.25", "p50_ms"), ("rate 20/s", "jobs_per_s"), ("rate 20/s", "p50_ms"),
    }  # fmt: skip


def files(**repeats: Sequence[float | None]) -> Results:
    """ "idle_p50_ms" -> values of that metric at that point."""
    found = []
    for name, values in repeats.items():
        point, metric = name.split("_", 1)
        better: Any = "higher" if metric.endswith("cosine") else "lower"
        found.append(Measurement("peers", "ours", point, metric, "", better, tuple(values)))
    return Results({}, {}, tuple(found))


def test_what_has_no_value_any_more_is_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = files(idle_p50_ms=[10.0] * 3, stop_sigterm_to_exit_s=[0.2] * 3)
    after = files(idle_p50_ms=[10.0] * 3, stop_sigterm_to_exit_s=[None] * 3)
    assert [one.verdict for one in compare.compare(before, after)] == [compare.WORSE, compare.UNCHANGED]
    assert run(before, after, tmp_path) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "| worse | peers: ours, stop, sigterm_to_exit_s | 0.2 | - | no value | - |" in printed
    assert "WORSE peers: ours, stop, sigterm_to_exit_s" in printed
    assert run(before, after, tmp_path, "--json") == 1
    (gone, _) = json.loads(capsys.readouterr().out)["findings"]
    assert (gone["verdict"], gone["after"], gone["change"], gone["low"]) == ("worse", None, None, None)
    assert run(after, before, tmp_path) == 0
    assert "Only the second file has peers: ours, stop." in capsys.readouterr().out


def test_what_only_one_file_has_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = Measurement("soak", "ours-fake", "mixed jobs", "rss_mb", "MB", "lower", (1.0,))
    floor = Measurement("soak", "floor", "mixed jobs", "rss_mb", "MB", "lower", (1.0,))
    before = files(
        idle_p50_ms=[1.0] * 3, idle_p99_ms=[2.0] * 3, idle_max_ms=[3.0] * 3, bulk_p50_ms=[1.0], none_p50_ms=[None]
    )
    after = files(idle_p50_ms=[1.0] * 3)
    after = Results({}, {}, (*after.measurements, other, floor))
    assert run(before, after, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "Only the first file has peers: ours, idle, p99_ms, max_ms; peers: ours, bulk.\n" in printed
    assert "Only the second file has soak: ours-fake.\n" in printed
    assert run(before, after, tmp_path, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["notes"]) == 2
    assert run(after, after, tmp_path) == 0
    assert "Only the" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("metric", "before", "after", "verdict"),
    [
        ("min_cosine", 0.999, 0.955, compare.WORSE),
        ("min_cosine", 0.955, 0.999, compare.BETTER),
        ("min_cosine", 0.9875, 0.9877, compare.UNCHANGED),
        ("mean_cosine", 1.0, 0.9999999, compare.UNCHANGED),  # as float32 rounds
        ("mean_cosine", 1.0, -0.5, compare.WORSE),
        ("rss_growth", 1.0, 1.04, compare.WORSE),
        ("rss_growth", 1.04, 1.0, compare.BETTER),
        ("rss_growth", 0.99, 1.006, compare.UNCHANGED),  # less than what is allowed
    ],
)
def test_what_is_good_near_one_is_compared_by_its_distance(metric: str, before: float, after: float, verdict: str):
    (found,) = compare.compare(files(**{f"a_{metric}": [before] * 5}), files(**{f"a_{metric}": [after] * 5}))
    assert found.verdict == verdict
    assert found.basis == "from 1"
    assert found.name == "peers: ours, a, " + (f"1 - {metric}" if "cosine" in metric else f"{metric} - 1")


@pytest.mark.parametrize(
    "command", ["accuracy", "batching", "distance", "int8", "latency", "load", "memory", "peers", "quick", "throughput"]
)
def test_what_a_command_measures_by_default_can_be_compared(command: str):
    parser = argparse.ArgumentParser()
    import_module(f"benchmarks.{command}").add_arguments(parser)
    rounds = parser.get_default("rounds")
    (found,) = compare.compare(results([10.0] * rounds), results([20.0] * rounds))
    assert found.verdict == compare.WORSE


def test_rounds_without_a_figure_are_left_out():
    before = results((*HEALTHY, math.nan), (5.0, 5.05, 4.95, 5.1, 5.0))
    (found,) = compare.compare(before, before)
    assert found.repeats == (4, 4)


def run(before: Results, after: Results, tmp_path: Path, *options: str) -> int:
    write(tmp_path / "a.json", before)
    write(tmp_path / "b.json", after)
    return command(tmp_path / "a.json", tmp_path / "b.json", *options)


def command(*arguments: object) -> int:
    return main(["compare", *(str(one) for one in arguments)])


def test_what_got_worse_is_named_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    slow = results([1.5 * value for value in HEALTHY], commit="b", processor="other")
    assert run(results(HEALTHY, processor="some"), slow, tmp_path) == 1
    printed = capsys.readouterr().out
    assert "WORSE load: ours, idle, p50_ms" in printed
    assert "The environment differs: processor some / other." in printed
    assert "| worse | load: ours, idle, p50_ms | 10.1 " in printed.replace("  ", " ")
    assert run(slow, slow, tmp_path) == 0
    assert "0 worse, 0 better, 0 too noisy to say, 1 unchanged" in capsys.readouterr().out


def test_a_larger_effect_may_be_allowed(tmp_path: Path):
    slow = results([1.5 * value for value in HEALTHY])
    assert run(results(HEALTHY), slow, tmp_path, "--effect", "0.6") == 0
    assert run(slow, results(HEALTHY), tmp_path) == 0  # better
    with pytest.raises(SystemExit):
        run(slow, slow, tmp_path, "--confidence", "95")


def test_findings_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(results(HEALTHY), results((20.0, 20.0)), tmp_path, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert found["key"] == ["load", "ours", "idle", "p50_ms"]
    assert (found["verdict"], found["low"], found["high"]) == ("too noisy to say", None, None)
    assert found["change"] == pytest.approx(2, rel=0.02)


def test_files_that_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = Results({}, {}, (Measurement("soak", "ours", "mixed jobs", "rss_mb", "MB", "lower", (1.0,)),))
    assert run(results(HEALTHY), other, tmp_path) == 2
    assert "load of ours, the second soak of ours; measure both with the same command" in capsys.readouterr().err
    (tmp_path / "b.json").write_text('{"schema_version": 99}')
    assert command(tmp_path / "a.json", tmp_path / "b.json") == 2
    assert "has schema_version 99, this reads 1" in capsys.readouterr().err
    assert command(tmp_path / "a.json", tmp_path / "missing.json") == 2
    assert "missing.json" in capsys.readouterr().err
    assert run(results(HEALTHY), results(HEALTHY), tmp_path, "--targets", "stock") == 2
