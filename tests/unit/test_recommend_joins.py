"""What `recommend` takes together, what it leaves out, and that it prints no setting which the worker refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.candidates import MOST_AT_ONCE, MOST_ROWS
from benchmarks.recommend import Asked, Recommendation, recommend, said
from benchmarks.report.stored import Source, Stored
from benchmarks.results_file import Measurement, Results, write
from engine.config import Settings
from tests.results import CPU, GPU, one
from tests.results import loops as load

Options = dict[str, Any]


def files(**found: tuple[Options, list[Measurement]] | tuple[Options, list[Measurement], Options]) -> Stored:
    """Name -> options, measurements and details, of a machine with a GPU."""
    return Stored(
        [Source(name, Results(GPU, options, tuple(made), *more)) for name, (options, made, *more) in found.items()]
    )


def throughput(target: str, tokens: int, rates: dict[int, float]) -> list[Measurement]:
    """Batch -> rows/s, of runs that all take as long."""
    return [
        one("throughput", target, f"batch {batch}, {tokens} tokens", metric, [batch / rate * 1e3], floor=False)
        for batch, rate in rates.items()
        for metric in ("p50_ms", "p99_ms")
    ]


def accuracy(**cosines: float) -> list[Measurement]:
    """Precision -> worst cosine."""
    found = {"ours": 1.0, **{f"ours-{precision}": cosine for precision, cosine in cosines.items()}}
    return [one("accuracy", target, "500 texts", "min_cosine", [cosine], False) for target, cosine in found.items()]


def recommended(known: Stored, asked: Asked) -> Recommendation:
    found = recommend(known, asked)
    assert isinstance(found, Recommendation), found
    return found


TENSORRT, ON_CPU = {"engine": "tensorrt"}, {"engine": "onnxruntime-cpu"}
RATES = {"rate 0.5": (500.0, 20.0), "rate 0.8": (800.0, 30.0)}


@pytest.mark.parametrize("order", [("fp16", "bf16"), ("bf16", "fp16")])
def test_a_loss_is_found_in_whichever_file_has_it(order: tuple[str, str]):
    losses = {"fp16": accuracy(fp16=0.9999), "bf16": accuracy(bf16=0.9995)}
    parts = {f"acc-{name}": (TENSORRT, losses[name]) for name in order}
    found = recommended(files(load=(TENSORRT, load("ours-bf16", RATES)), **parts), Asked(50, 0.4, max_loss=1e-3))
    assert found.precision == "bf16"
    assert found.accuracy_loss == pytest.approx(5e-4)
    assert "accuracy: acc-bf16" in found.measured


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("ours-tensorrt-fp16", TENSORRT),
        ("ours-fp16", {"engine": "auto", "served_engine": "tensorrt"}),
    ],
    ids=["told", "picked"],
)
def test_what_ran_on_one_engine_belongs_together(target: str, options: Options):
    known = files(
        load=(options, load(target, RATES)),
        throughput=(TENSORRT, throughput("ours-fp16", 128, {1: 1e3, 8: 4e3, 32: 9e3})),
        accuracy=(TENSORRT, accuracy(fp16=0.9999)),
    )
    found = recommended(known, Asked(50, 0.4, max_loss=1e-3))
    assert (found.engine, found.precision, found.jobs_per_s) == ("tensorrt", "fp16", 800.0)
    assert found.ladder == (1, 8, 32)
    assert found.accuracy_loss == pytest.approx(1e-4)


@pytest.mark.parametrize("engine", ["tensorrt", "onnxruntime-cuda"])
def test_peers_of_auto_belong_to_the_engine_that_was_picked(engine: str):
    environment = {**GPU, "targets": {"ours": {"engine": engine, "precision": "fp16"}}}
    made = tuple(replace(one, scenario="peers") for one in load("ours", {"32 clients": (800.0, 30.0)}))
    known = files(throughput=(TENSORRT, throughput("ours-fp16", 128, {1: 1e3, 8: 4e3})))
    peers = Source("peers", Results(environment, {"engine": "auto"}, made))
    found = recommended(Stored([peers, *known.sources]), Asked(50, 0.4))
    assert (found.engine, found.precision, found.ladder) == (engine, "fp16", (1, 8) if engine == "tensorrt" else ())


def test_a_cpu_s_grid_and_loss_are_not_those_of_the_gpu_beside_it():
    known = files(
        load=({"engine": "auto"}, load("ours", RATES)),
        throughput=(ON_CPU, throughput("ours", 16, {1: 500.0, 8: 900.0})),
        accuracy=(ON_CPU, accuracy(int8=0.98)),
    )
    found = recommended(known, Asked(50, 0.4))
    assert (found.engine, found.jobs_per_s, found.ladder, found.accuracy_loss) == ("auto", 800.0, (), None)
    assert "not known: no run of `latency` or `throughput` of this engine and precision" in said(found, Asked(50, 0.4))


def test_a_load_in_which_jobs_failed_is_out_and_named():
    counts = [
        {"target": "ours", "point": "8 clients", "jobs": [50, 50], "errors": [450, 450]},
        {"target": "ours", "point": "1 client", "jobs": [30, 30], "errors": [0, 0]},
        {"target": "ours-int8", "point": "1 client", "jobs": [30, 30], "errors": [9, 9]},
    ]
    loops = load("ours", {"8 clients": (90.0, 20.0), "1 client": (30.0, 20.0)})
    found = recommended(files(load=({}, loops, {"counts": counts})), Asked(50, 0.4))
    assert found.jobs_per_s == 30.0
    assert "load, load, ours, 8 clients is out: 900 of 1000 jobs failed" in found.measured
    failed = recommend(files(load=({}, load("ours", {"8 clients": (90.0, 20.0)}), {"counts": counts})), Asked(50, 0.4))
    assert failed == "Nothing meets p99 <= 50 ms: load, load, ours, 8 clients is out: 900 of 1000 jobs failed."


def test_no_setting_is_over_what_the_worker_takes():
    assert (MOST_AT_ONCE, MOST_ROWS) == (1000, 4096)
    for env, most in (("MAX_CONCURRENCY", MOST_AT_ONCE), ("MAX_BATCH_ROWS", MOST_ROWS)):
        Settings.from_environ({env: str(most)})
    rates = {1: 1e3, 64: 3e4, 4096: 1e5, 8192: 2e5}
    found = recommended(files(a=({}, throughput("ours-fp16", 16, rates))), Asked(1000, 0.4))
    assert (found.ladder, found.concurrency, found.jobs_per_s) == ((1, 64, 4096), 1000, 1e5)
    assert "batches of 8192 rows are out: MAX_BATCH_ROWS takes 4096 at most" in found.measured
    assert "concurrency: two batches are 8192 jobs, and MAX_CONCURRENCY takes 1000 at most" in found.measured


@pytest.mark.parametrize(
    ("options", "concurrency", "more"),
    [
        ({}, Settings().max_concurrency, Settings().max_concurrency < MOST_AT_ONCE),
        ({"concurrency": 64}, 64, True),
        ({"concurrency": 1000}, 1000, False),
    ],
)
def test_concurrency_is_what_the_measured_worker_took_at_once(options: Options, concurrency: int, more: bool):
    found = recommended(files(a=(options, load("ours", {"rate 0.9": (1200.0, 900.0)}))), Asked(1000, 0.4))
    assert found.concurrency == concurrency
    sentence = found.measured[-1]
    assert sentence.startswith(f"concurrency: 1080 jobs were under way, of which the worker took {concurrency} at once")
    assert ("`load` with MAX_CONCURRENCY set" in sentence) is more
    few = recommended(files(a=(options, load("ours", {"8 clients": (90.0, 20.0)}))), Asked(1000, 0.4))
    assert (few.concurrency, len(few.measured)) == (8, 1)


def test_a_length_that_was_not_measured_is_said():
    known = files(a=({}, load("ours", RATES)), b=({}, throughput("ours", 128, {1: 1e3, 8: 4e3})))
    sentence = "length: no row of 512 tokens was measured; the longest has 128, and runs sooner"
    assert sentence in recommended(known, Asked(50, 0.4, length=512)).measured
    assert not any("length" in one for one in recommended(known, Asked(50, 0.4, length=100)).measured)


def test_a_cost_has_three_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for rate, cost in ((200_000.0, "0.000556"), (800.0, "0.139"), (1.1, "101")):
        write(tmp_path / "a.json", Results(CPU, {}, tuple(load("ours", {"8 clients": (rate, 20.0)}))))
        asked = ["recommend", str(tmp_path / "a.json"), "--p99-ms", "50", "--price-per-hour", "0.4", "--rate", "2"]
        assert main(asked) == 0
        said_of_it = capsys.readouterr().out
        assert f"cost            {cost} per million requests, always busy" in said_of_it
        assert "engine          onnxruntime-cpu (ENGINE=onnxruntime-cpu)" in said_of_it
