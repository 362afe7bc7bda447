"""What the benchmarks print can be recomputed by hand."""

import json
import math
import statistics
from itertools import islice
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import coldstart, engines, load
from benchmarks.clients import Answers
from benchmarks.import_times import costs
from benchmarks.import_times import table as import_table
from benchmarks.knee import knee
from benchmarks.measure import figure, markdown, percentile, ratio, times, write_json
from benchmarks.results_file import Results
from benchmarks.rounds import Round, measurements, options_of, target_of, unit
from benchmarks.workload import arrivals, stream, texts
from engine.plans.sidecar import PlanFile
from engine.probe import Gpu
from engine.select import Facts
from tests.plans import add_plan, plan


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 3), (90, 4.6), (99, 4.96), (100, 5)])
def test_percentiles_lie_between_neighbours(percent: float, expected: float):
    assert percentile([5, 3, 1, 4, 2], percent) == pytest.approx(expected)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_the_50th_percentile_is_the_median(values: list[float]):
    assert percentile(values, 50) == pytest.approx(statistics.median(values))
    assert percentile(values, 100) == max(values)


def test_without_samples_there_is_no_percentile():
    assert math.isnan(percentile([], 50))


def test_a_plan_without_one_of_the_buckets_is_none_to_measure(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """`export plan` leaves out large batches of long rows, though it has each of those sizes."""
    monkeypatch.setattr(engines, "gpu", lambda: Gpu("NVIDIA L4", (8, 9)))
    monkeypatch.setattr(engines, "tensorrt_version", lambda: "10.13.0.35")
    add_plan(small_bundle, max_tokens=64)
    built: list[list[str]] = []

    def build(command: list[str]) -> Any:
        built.append(command)
        add_plan(small_bundle, b"all of them")
        return CompletedProcess(command, 0)

    monkeypatch.setattr("benchmarks.engines.subprocess.run", build)
    engines.prepare(small_bundle, "tensorrt", "fp16", [1, 8], [8, 16], "")
    assert not built
    engines.prepare(small_bundle, "tensorrt", "fp16", [1, 8], [8, 32], "")
    assert built[0][-4:] == ["--batches", "1,8", "--lengths", "8,32"]
    engines.prepare(small_bundle, "tensorrt", "fp16", [1, 8], [8, 32], "")
    assert len(built) == 1


def test_the_precision_that_is_served_is_the_plan_s(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """On a GPU a bundle in fp32 answers in what its plan was built for."""
    assert engines.served_precision(small_bundle, {}) == "fp32"
    assert engines.served_precision(small_bundle, {"ENGINE": "fake"}) == "fp32"
    facts = Facts(
        gpu=Gpu("NVIDIA L4", (8, 9)),
        providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
        tensorrt="10.13.0.35",
        plans=[PlanFile(plan(precision="fp16"), Path("a.plan"))],
    )
    monkeypatch.setattr(engines, "gather", lambda *asked: facts)
    assert engines.served_precision(small_bundle, {}) == "fp16"
    assert engines.served_precision(small_bundle, {"ENGINE": "onnxruntime-cuda"}) == "fp32"
    assert engines.served_engine(small_bundle, {}) == "tensorrt"
    assert engines.served_engine(small_bundle, {"ENGINE": "onnxruntime-cuda"}) == "onnxruntime-cuda"


def test_ratios():
    assert ratio(3, 2) == 1.5
    assert math.isnan(ratio(None, 2))
    assert math.isnan(ratio(3, 0))
    assert (times(1.5), times(120.4), times(None), times(math.nan)) == ("1.5x", "120x", "-", "-")


@pytest.mark.parametrize(
    ("value", "text"), [(0.0012345, "0.00123"), (99.94, "99.9"), (1234.5, "1234"), (None, "-"), (math.nan, "-")]
)
def test_figures_have_three_digits(value: float | None, text: str):
    assert figure(value) == text
    assert figure(value, "ms") == (text if text == "-" else f"{text} ms")


def test_markdown_tables():
    rows = [("a", "1"), ("long", "22")]
    assert markdown(("", "n"), rows, aligned=False) == "| | n |\n| --- | --- |\n| a | 1 |\n| long | 22 |"
    assert markdown(("", "n"), rows) == "|      | n   |\n| ---- | --- |\n| a    | 1   |\n| long | 22  |"


def test_results_hold_no_nan(tmp_path: Path):
    write_json(tmp_path / "new" / "results.json", {"a": [math.nan, 1.5], "b": {"c": None}})
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == {"a": [None, 1.5], "b": {"c": None}}


def test_the_load_is_the_same_every_time():
    assert texts(3, seed=7) == list(islice(stream(seed=7), 3)) != texts(3, seed=8)
    due = list(arrivals(50, 100))
    assert due == sorted(due) == list(arrivals(50, 100))
    assert len(due) == pytest.approx(5000, rel=0.1)
    assert max(due) < 100


def test_import_times_count_a_package_once_with_what_it_pulled_in():
    lines = [
        "import time: self [us] | cumulative | imported package",
        "import time:       100 |        100 |     b.sub",
        "import time:        50 |        150 |   b",
        "import time:        10 |         10 |   a.sub",
        "import time:      1000 |       1160 | a",
        "import time:         5 |          5 | c",
        "something that the worker logged",
    ]
    found = costs(lines)
    assert [(c.package, c.cumulative_ms, c.own_ms, c.modules) for c in found] == [
        ("a", 1.16, 1.01, 2),
        ("b", 0.15, 0.15, 2),
        ("c", 0.005, 0.005, 1),
    ]
    assert import_table(found, top=1).splitlines()[2:] == [
        "| a       | 1.2                       | 1.0     | 2       |"
    ]


def test_the_budget_of_a_start():
    rounds: list[Round] = [
        {
            ("ours", "warm"): {"first_take_s": 0.6, "first_answer_s": 0.61},
            ("floor", "warm"): {"ready_s": 0.4, "first_answer_s": 0.305},
        }
    ]
    stages = {"floor": {"warm": {"imports": [300.0]}}, "ours": {"warm": {"verify": [80.0]}}}
    found = measurements("coldstart", rounds, coldstart.floor_of)
    lines = coldstart.table(Results({}, {}, found, {"stages": stages})).splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]] == [
        ["verify", "80", "80"],
        ["exec to first take", "600", "600"],
        ["exec to first answer", "610", "610"],
        ["floor: imports", "300", "300"],
        ["floor: exec to ready", "400", "400"],
        ["floor: exec to first answer", "305", "305"],
        ["exec to first take / floor's exec to ready", "1.5x", "1.5x"],
        ["exec to first answer / floor's exec to first answer", "2x", "2x"],
    ]


def test_each_load_is_measured_against_its_own_floor():
    found: Round = {
        ("ours", "idle"): {"p50_ms": 20.0},
        ("ours", "1 client"): {"jobs_per_s": 90.0, "p50_ms": 24.0},
        ("ours", "8 clients"): {"jobs_per_s": 120.0, "p50_ms": 120.0},
        ("ours", "rate 0.5"): {"jobs_per_s": 60.0, "p50_ms": 36.0},
        ("ours", "bulk"): {"jobs_per_s": 150.0},
        ("floor", "idle"): {"p50_ms": 10.0},
        ("floor", "one by one"): {"jobs_per_s": 100.0, "p50_ms": 12.0},
        ("floor", "batches"): {"jobs_per_s": 160.0},
        ("floor", "bulk"): {"jobs_per_s": 200.0},
    }
    results = Results({}, {}, measurements("load", [found], load.floor_of), {"knee": None})
    cells = {
        line.split("|")[1].strip(): tuple(cell.strip() for cell in line.split("|")[-3:-1])
        for line in load.table(results).splitlines()[2:7]
    }
    assert cells == {
        "ours, idle": ("-", "2x"),
        "ours, 1 client": ("0.9x", "2x"),
        "ours, 8 clients": ("0.75x", "10x"),
        "ours, rate 0.5": ("-", "3x"),
        "ours, bulk": ("0.75x", "-"),
    }
    without_floor = measurements(
        "load", [{where: figures for where, figures in found.items() if where[0] == "ours"}], load.floor_of
    )
    assert [one.floor for one in without_floor] == [None] * 8


def test_the_fake_engine_is_measured_against_a_bare_worker():
    assert load.floor_of("ours-fake", "idle", "p99_ms") == ("bare", "idle", "p99_ms")
    assert load.floor_of("ours-fake", "rate 20/s", "p99_ms") == ("bare", "1 client", "p50_ms")
    assert load.floor_of("ours-fake-int8", "idle", "p99_ms") == ("bare", "idle", "p99_ms")
    assert load.floor_of("bare", "idle", "p99_ms") is None


def open_loop(point: str, offered: float, reached: float, p99: float) -> dict[str, Any]:
    return {"point": point, "offered_per_s": [offered] * 3, "reached_per_s": [reached] * 3, "p99_ms": [p99, p99, 1e6]}


def test_the_knee_is_the_last_rate_before_the_queue_grows():
    loops = [open_loop("a", 10, 10, 5), open_loop("b", 20, 19.5, 14), open_loop("c", 30, 29, 16)]
    found = knee(loops)
    assert found == {"point": "b", "offered_per_s": 20, "reached_per_s": 19.5, "p99_ms": 14}
    assert knee(list(reversed(loops))) == found
    assert knee([loops[0], open_loop("b", 20, 18, 5), open_loop("c", 30, 30, 5)]) == knee(loops[:1])
    assert knee([open_loop("a", 10, 5, 5)]) is None
    assert knee([]) is None


def test_a_loop_in_which_no_job_came_says_nothing_of_the_knee():
    """As at a rate so low that none was drawn: its p99 is NaN, and every other is compared with the lowest rate's."""
    empty = {**open_loop("none", 0, 0, math.nan), "p99_ms": [math.nan] * 3}
    loops = [open_loop("a", 10, 10, 5), open_loop("b", 20, 20, 500)]
    assert knee([empty, *loops]) == knee(loops) == knee(loops[:1])
    assert knee([empty]) is None
    once = {"point": "a", "offered_per_s": [0, 10, 10], "reached_per_s": [0, 10, 10], "p99_ms": [math.nan, 5, 5]}
    assert knee([once, loops[1]]) == knee(loops)
    failed = {**open_loop("b", 20, 0, math.nan), "p99_ms": [math.nan] * 3}
    assert knee([loops[0], failed, open_loop("c", 30, 30, 5)]) == knee(loops)
    assert knee([failed]) is None


def test_rounds_become_repeats():
    rounds: list[Round] = [{("ours", "a"): {"x_ms": 1.0}}, {("ours", "a"): {"x_ms": 2.0, "jobs_per_s": 3.0}}, {}]
    first, second = measurements("some", rounds)
    assert (first.key, first.unit, first.better, first.repeats) == (
        ("some", "ours", "a", "x_ms"), "ms", "lower", (1.0, 2.0, None),
    )  # fmt: skip
    assert (second.better, second.repeats) == ("higher", (None, 3.0, None))
    assert unit("threads") == ("", "lower")
    assert (target_of("auto"), target_of("auto", "int8"), target_of("fake")) == ("ours", "ours-int8", "ours-fake")


def test_a_round_without_answers_is_in_no_order():
    (found,) = measurements("some", [{("ours", "a"): {"x_ms": value}} for value in (100.0, math.nan, 10.0, 300.0)])
    assert found.repeats == (100.0, None, 10.0, 300.0)
    assert found.median == 100.0
    assert math.isnan(Answers().summary()["max_ms"])


def test_options_tell_no_paths():
    options = options_of({"command": "load", "bundle": Path("/home/me/bundle"), "json": Path("x"), "jobs": 1})
    assert options == {"bundle": "bundle", "jobs": 1}
