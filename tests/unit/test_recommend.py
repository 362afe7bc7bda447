"""From files to settings, on figures that are easy to check by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.__main__ import main
from benchmarks.recommend import Asked, Recommendation, cost_per_million, recommend
from benchmarks.report.stored import Source, Stored
from benchmarks.results_file import Measurement, Results, write
from tests.results import CPU, GPU, one
from tests.results import loops as load


def grid(target: str, tokens: int, runs: dict[int, tuple[float, float]]) -> list[Measurement]:
    """Batch -> p50 and p99 in ms."""
    points = {f"minilm, batch {batch}, {tokens} tokens": both for batch, both in runs.items()}
    figures = [
        (point, metric, value)
        for point, both in points.items()
        for metric, value in zip(("p50_ms", "p99_ms"), both, strict=True)
    ]
    return [one("latency", target, point, metric, [value], floor=False) for point, metric, value in figures]


def known(*found: list[Measurement]) -> Stored:
    return Stored([Source("all-cpu", Results(CPU, {}, tuple(one for part in found for one in part)))])


OURS = load(
    "ours",
    {"32 clients": (200.0, 300.0), "8 clients": (150.0, 90.0), "rate 0.5": (100.0, 40.0), "rate 0.8": (140.0, 80.0)},
)
INT8 = load("ours-int8", {"8 clients": (260.0, 70.0), "rate 0.5": (150.0, 25.0)})
GRID = grid("ours", 128, {1: (10.0, 12.0), 8: (40.0, 45.0), 16: (100.0, 110.0), 32: (160.0, 190.0)})
LOSSES = [
    one("accuracy", target, "9 texts", "min_cosine", [cosine], False)
    for target, cosine in (("ours", 1.0), ("ours-int8", 0.987))
]


def test_open_loops_decide_and_little_s_law_gives_the_concurrency():
    found = recommend(known(OURS), Asked(100, 0.4))
    assert isinstance(found, Recommendation)
    assert (found.jobs_per_s, found.p99_ms) == (140.0, 80.0)
    assert found.concurrency == 12  # 140/s x 0.08 s = 11.2
    assert found.cost_per_million == pytest.approx(0.4 / 3600 / 140 * 1e6)
    assert found.ladder == ()


def test_closed_loops_decide_only_where_there_is_no_open_one():
    """Clients that wait for their answers meet a target at rates at which jobs that come by themselves miss it."""
    closed = {"8 clients": (150.0, 90.0)}
    found = recommend(known(load("ours", closed)), Asked(100, 1.0))
    assert isinstance(found, Recommendation)
    assert (found.jobs_per_s, found.concurrency) == (150.0, 8)
    both = known(load("ours", {**closed, "rate 0.5": (100.0, 200.0)}))
    assert "the nearest is fp32 on onnxruntime-cpu with p99 200 ms" in str(recommend(both, Asked(100, 1.0)))


@given(
    st.dictionaries(
        st.sampled_from(["1 client", "8 clients", "32 clients", "rate 0.25", "rate 0.5", "rate 0.8"]),
        st.tuples(st.floats(1, 500), st.floats(1, 500)),
    ),
    st.floats(1, 500),
    st.floats(1, 500),
)
def test_a_stricter_target_is_never_cheaper(points: dict[str, tuple[float, float]], one_ms: float, another_ms: float):
    strict, loose = (recommend(known(load("ours", points)), Asked(ms, 1.0)) for ms in sorted((one_ms, another_ms)))
    if isinstance(strict, Recommendation):
        assert isinstance(loose, Recommendation)
        assert loose.cost_per_million <= strict.cost_per_million


def test_a_precision_that_was_seen_in_a_closed_loop_only_is_named():
    closed = [
        one("peers", "ours-int8", "32 clients", metric, [value], False)
        for metric, value in (("jobs_per_s", 300.0), ("p99_ms", 90.0))
    ]
    found = recommend(known(OURS, closed), Asked(100, 1.0))
    assert isinstance(found, Recommendation)
    assert found.precision == "fp32"
    assert (
        "int8 on onnxruntime-cpu may be faster (300 jobs/s: all-cpu, peers, ours-int8, 32 clients)"
        in found.measured[-1]
    )


def test_the_fastest_precision_is_taken_unless_it_loses_too_much():
    fast = recommend(known(OURS, INT8, LOSSES), Asked(100, 1.0))
    exact = recommend(known(OURS, INT8, LOSSES), Asked(100, 1.0, max_loss=1e-3))
    assert isinstance(fast, Recommendation) and isinstance(exact, Recommendation)
    assert (fast.precision, exact.precision) == ("int8", "fp32")
    assert fast.accuracy_loss == pytest.approx(0.013)
    assert any("int8 on onnxruntime-cpu is out: its accuracy loss is 0.013" in sentence for sentence in exact.measured)


def test_a_precision_whose_loss_is_not_known_is_out_when_one_is_asked_for():
    found = recommend(known(OURS, INT8), Asked(100, 1.0, max_loss=1e-3))
    assert isinstance(found, str)
    assert "is in no file of `accuracy`" in found


def stored(**files: tuple[dict[str, object], list[Measurement]]) -> Stored:
    return Stored([Source(name, Results(GPU, options, tuple(found))) for name, (options, found) in files.items()])


HALF = [
    one("accuracy", name, "9 texts", "min_cosine", [value], False) for name, value in (("ours", 1), ("ours-fp16", 0.99))
]


def test_the_loss_is_that_of_the_precision_which_was_measured():
    files = stored(latency=({}, grid("ours-fp16", 128, {1: (10.0, 12.0)})), accuracy=({}, HALF))
    found = recommend(files, Asked(100, 1.0))
    assert isinstance(found, Recommendation)
    assert found.precision == "fp16"
    assert found.accuracy_loss == pytest.approx(0.01)
    exact = recommend(files, Asked(100, 1.0, max_loss=1e-3))
    assert isinstance(exact, str)
    assert "fp16 is out: its accuracy loss is 0.01, allowed is 0.001" in exact


def test_peers_are_in_the_precision_that_was_served():
    """On a GPU `ours` of a bundle in fp32 answers by its plan in fp16."""
    closed = [
        one("peers", "ours", "32 clients", metric, [value], False)
        for metric, value in (("jobs_per_s", 300.0), ("p99_ms", 90.0))
    ]
    served = {**GPU, "targets": {"ours": {"precision": "fp16"}}}
    files = Stored([Source("peers", Results(served, {}, tuple(closed))), Source("a", Results(GPU, {}, tuple(HALF)))])
    found = recommend(files, Asked(100, 1.0))
    assert isinstance(found, Recommendation)
    assert found.precision == "fp16"
    assert found.accuracy_loss == pytest.approx(0.01)


def test_two_runs_of_a_batch_fit_into_the_target_and_larger_ones_must_gain():
    found = recommend(known(OURS, GRID), Asked(400, 1.0))
    short = recommend(known(OURS, GRID), Asked(80, 1.0))
    assert isinstance(found, Recommendation) and isinstance(short, Recommendation)
    assert found.ladder == (1, 8)  # 16 has fewer rows a second than 8; two runs of 32 fit, and bring no more either
    assert short.ladder == (1,)
    assert found.length == 128


def test_the_least_length_that_is_long_enough_is_looked_at():
    both = known(OURS, grid("ours", 16, {1: (1.0, 1.2), 8: (4.0, 5.0)}), GRID)
    for length, looked_at in ((10, 16), (16, 16), (17, 128), (500, 128)):
        found = recommend(both, Asked(100, 1.0, length=length))
        assert isinstance(found, Recommendation)
        assert found.length == looked_at


def test_the_bundle_s_own_grid_goes_before_random_encoders_and_a_model_can_be_named():
    own = [
        replace(one, scenario="throughput", point=one.point.removeprefix("minilm, "))
        for one in grid("ours", 64, {1: (10.0, 12.0), 8: (20.0, 25.0)})
    ]
    found = recommend(known(OURS, GRID, own), Asked(100, 1.0))
    named = recommend(known(OURS, GRID, own), Asked(100, 1.0, model="minilm"))
    assert isinstance(found, Recommendation) and isinstance(named, Recommendation)
    assert (found.length, found.ladder) == (64, (1, 8))
    assert named.length == 128


def test_without_a_load_the_engine_alone_stands_in_and_says_so():
    found = recommend(known(GRID), Asked(100, 1.0))
    assert isinstance(found, Recommendation)
    assert (found.jobs_per_s, found.p99_ms) == (200.0, 90.0)  # batch 8 in 40 ms; two of its p99
    assert "the engine alone" in found.measured[0]


def test_another_percentile_does_not_stand_in_for_p99():
    ninety = [replace(one, metric=one.metric.replace("p99", "p90")) for one in GRID]
    assert (
        "nothing meets p99 <= 100 ms: there is no measurement" in str(recommend(known(ninety), Asked(100, 1.0))).lower()
    )
    found = recommend(known(OURS, ninety), Asked(100, 1.0))
    assert isinstance(found, Recommendation)
    assert (found.ladder, found.length) == ((), None)


def test_a_loop_that_served_nothing_is_no_candidate():
    idle = [
        one("load", "ours", "rate 1/s", metric, values, False)
        for metric, values in (("jobs_per_s", [0.0, 0.0, 5.0]), ("p99_ms", [None, None, 50.0]))
    ]
    assert "there is no measurement" in str(recommend(known(idle), Asked(100, 1.0)))
    found = recommend(known(idle, load("ours", {"rate 9/s": (9.0, 60.0)})), Asked(100, 1.0, rate=20))
    assert isinstance(found, Recommendation)
    assert (found.jobs_per_s, found.workers) == (9.0, 3)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_loop_that_did_not_answer_what_was_offered_is_no_candidate(by_name: bool):
    """Its p99 is as long as the loop was. Of several scenarios in one file each has its own details."""
    loops = [
        {"target": "ours", "point": "rate 0.8", "offered_per_s": [160.0, 150.0], "reached_per_s": [130.0, 140.0]},
        {"target": "ours", "point": "rate 0.5", "offered_per_s": [100.0, 104.0], "reached_per_s": [100.0, 100.0]},
        {"target": "ours-int8", "point": "rate 0.5", "offered_per_s": [150.0], "reached_per_s": [100.0]},
    ]
    details = {"load": {"open_loop": loops}} if by_name else {"open_loop": loops}
    stored = Stored([Source("all-cpu", Results(CPU, {}, tuple(OURS), details))])
    found = recommend(stored, Asked(100, 1.0))
    assert isinstance(found, Recommendation)
    assert (found.jobs_per_s, found.p99_ms) == (100.0, 40.0)
    open_only = Stored([Source("all-cpu", Results(CPU, {}, tuple(load("ours", {"rate 0.5": (100.0, 40.0)})), details))])
    assert isinstance(recommend(open_only, Asked(100, 1.0)), Recommendation)


def test_workers_for_a_rate_are_whole_and_their_idle_time_is_paid():
    found = recommend(known(OURS), Asked(100, 0.4, rate=300))
    assert isinstance(found, Recommendation)
    assert found.workers == 3
    assert found.cost_per_million_at_rate == pytest.approx(cost_per_million(3 * 0.4, 300))


def test_when_nothing_meets_the_target_the_nearest_is_named():
    assert recommend(known(OURS), Asked(1, 0.4)) == (
        "Nothing meets p99 <= 1 ms; the nearest is fp32 on onnxruntime-cpu with p99 40 ms "
        "(all-cpu, load, ours, rate 0.5)."
    )
    assert "there is no measurement of" in str(recommend(known(LOSSES), Asked(1, 0.4)))


def test_the_command_prints_lines_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "a.json", Results(CPU, {}, (*OURS, *GRID)))
    asked = ["recommend", str(tmp_path / "a.json"), "--p99-ms", "100", "--price-per-hour", "0.4", "--rate", "300"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    for part in ("precision       fp32", "--batches 1,8", "MAX_CONCURRENCY=12", "3 workers", "a, load, ours, rate 0.8"):
        assert part in said
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ladder"] == [1, 8]


def test_the_command_fails_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "a.json", Results(CPU, {}, tuple(OURS)))
    write(tmp_path / "b.json", Results(GPU, {}, tuple(OURS)))
    options = ["--p99-ms", "1", "--price-per-hour", "0.4"]
    assert main(["recommend", str(tmp_path / "a.json"), *options]) == 1
    assert main(["recommend", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *options]) == 2
    assert main(["recommend", str(tmp_path / "none.json"), *options]) == 2
    said = capsys.readouterr().err
    assert "a price is of one machine" in said
    assert "none.json cannot be read" in said


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ({"model": "b"}, {}),
        ({"load": {"model": "b"}, "soak": {"model": "b"}}, {}),
        ({}, {"targets": {"ours": {"model": "b"}, "stock": {"torch": "2"}}}),
    ],
    ids=["load", "quick", "peers"],
)
def test_files_of_several_models_are_not_mixed(
    options: dict[str, Any], environment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, told in (("a", {"model": "a"}), ("old", {}), ("again", {"model": "a"})):
        write(tmp_path / f"{name}.json", Results(CPU, told, tuple(OURS)))
    write(tmp_path / "b.json", Results({**CPU, **environment}, options, tuple(OURS)))
    asked = ["recommend", "--p99-ms", "100", "--price-per-hour", "0.4"]
    assert main([*asked, *(str(tmp_path / f"{name}.json") for name in ("a", "old", "again"))]) == 0
    assert main([*asked, str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "a setting is of one model, and these files are of: a, b; name files of one" in capsys.readouterr().err
