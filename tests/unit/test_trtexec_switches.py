"""trtexec's switches: read as trtexec reads them, refused where they have no meaning."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.engine_times import timed
from benchmarks.trtexec_switches import Switches, add_switches, export_times, notes, switches_of


def read(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_switches(parser, duration_s=3.0)
    return parser.parse_args(arguments)


def test_the_defaults_are_trtexecs_but_for_what_the_worker_does():
    assert switches_of(read(), "tensorrt") == Switches()
    assert Switches() == Switches(200.0, 3.0, 10, (90.0, 95.0, 99.0), True, True, 1, None)


def test_all_of_them():
    given = "--warmUp=500 --duration=10 --iterations=100 --percentile=50,99.9 --noCudaGraph --noDataTransfers".split()
    given += ["--useSpinWait", "--streams=2", "--exportTimes=t.json"]
    found = switches_of(read(*given), "tensorrt")
    assert found == Switches(500.0, 10.0, 100, (50.0, 99.9), False, False, 2, Path("t.json"))
    assert found.metrics == {"p50_ms": 50.0, "p99.9_ms": 99.9}
    assert found.engine == {"cuda_graph": False, "streams": 2}
    assert json.loads(json.dumps(found.as_options()))["percentiles"] == [50.0, 99.9]


@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "onnxruntime-cuda"])
@pytest.mark.parametrize("switch", ["--useCudaGraph", "--noDataTransfers", "--useSpinWait", "--streams=2"])
def test_what_means_nothing_to_an_engine_is_refused_by_name(switch: str, engine: str):
    with pytest.raises(ValueError, match=f"{switch.partition('=')[0]}: no meaning for {engine}"):
        switches_of(read(switch), engine)


def test_what_changes_nothing_is_noted():
    assert notes(read("--noCudaGraph"), "onnxruntime-cpu") == [
        "--noCudaGraph changes nothing: onnxruntime-cpu has no CUDA graph"
    ]
    assert notes(read("--noCudaGraph"), "tensorrt") == notes(read(), "onnxruntime-cpu") == []


@pytest.mark.parametrize(
    "given", [["--percentile=101"], ["--iterations=0"], ["--warmUp=-1"], ["--useCudaGraph", "--noCudaGraph"]]
)
def test_wrong_values_end_the_command(given: list[str]):
    with pytest.raises(SystemExit):
        read(*given)


def test_duration_and_iterations_are_both_at_least():
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1

    took = timed(run, warm_up_ms=0, duration_s=0, iterations=7)
    assert len(took.ms) == 7
    assert calls == 8  # one that warms up
    long = timed(run, warm_up_ms=0, duration_s=0.05, iterations=1)
    assert long.seconds >= 0.05
    assert sum(long.ms) == pytest.approx(long.seconds * 1e3)


def test_every_time_is_exported(tmp_path: Path):
    export_times(tmp_path / "t.json", [("ours", "batch 1, 16 tokens", [1.0, 2.0]), ("floor", "x", [])])
    assert json.loads((tmp_path / "t.json").read_text()) == [
        {"target": "ours", "point": "batch 1, 16 tokens", "latencyMs": 1.0},
        {"target": "ours", "point": "batch 1, 16 tokens", "latencyMs": 2.0},
    ]
