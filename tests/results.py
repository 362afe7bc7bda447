"""Invented results files of every scenario, for tests of what reads such files. No figure in here was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_file import Measurement, Results, write

CPU = {
    "date": "2026-01-02",
    "gpu": None,
    "cpus": 2.0,
    "processor": "Invented(R) CPU @ 2.00GHz",
    "python": "3.11.7",
    "versions": {"numpy": "1.26.4", "onnxruntime": "1.18.1"},
    "commit": "0123456789ab",
}
GPU = {**CPU, "gpu": "NVIDIA Invented 80GB", "driver": "550.1", "cuda": "11.8", "tensorrt": "10.13.0"}

_LATENCIES = {"ours-alone": 0.9, "ours": 1.0, "ours-handler": 1.2, "torch-eager": 2.4, "torch-compile": 1.7}
PEERS = ("ours-int8", "stock", "infinity", "infinity-http", "litserve", "floor")


def write_all(folder: Path) -> list[Path]:
    """Every file below `folder`."""
    files = {
        "peers-cpu": peers(),
        "load-cpu": load(),
        "coldstart-cpu": coldstart(),
        "latency-cpu": latency(CPU, 9.0),
        "latency-gpu": latency(GPU, 0.09),
        "accuracy-cpu": accuracy(),
    }
    for name, results in files.items():
        write(folder / f"{name}.json", results)
    return [folder / f"{name}.json" for name in files]


def one(
    scenario: str, target: str, point: str, metric: str, values: Sequence[float | None], floor: bool = True
) -> Measurement:
    """A measurement whose unit is told by its metric."""
    ends = {"jobs_per_s": "jobs/s", "rows_per_s": "rows/s", "_ms": "ms", "_mb": "MB", "_s": "s"}
    unit = next((text for end, text in ends.items() if metric.endswith(end)), "")
    higher = metric.endswith(("per_s", "min_cosine"))
    below = ("floor", point, metric) if floor and target != "floor" else None
    return Measurement(scenario, target, point, metric, unit, "higher" if higher else "lower", tuple(values), below)


def peers() -> Results:
    """Three rounds in which every other target is so many times worse than ours."""
    worse = {"ours-int8": 0.8, "stock": 24.0, "infinity": 21.0, "infinity-http": 11.0, "litserve": 3.2, "floor": 0.7}
    points = {
        ("cold start", "first_answer_s"): 0.5,
        ("idle", "p50_ms"): 12.0,
        ("32 clients", "jobs_per_s"): 150.0,
        ("bulk", "rows_per_s"): 180.0,
        ("memory", "pss_mb"): 178.0,
    }
    found = []
    for (point, metric), value in points.items():
        for target, times in {"ours": 1.0, **worse}.items():
            scale = 1 / times**0.5 if metric.endswith("per_s") else times
            found.append(one("peers", target, point, metric, [value * scale * n for n in (1.0, 1.05, 0.98)]))
    return Results(CPU, {"seed": 0, "seconds": 8.0, "rounds": 3}, tuple(found))


def load() -> Results:
    """A closed loop, and an open one with a knee."""
    closed = {"1 client": (90.0, 11.0, 16.0), "8 clients": (140.0, 55.0, 92.0), "32 clients": (152.0, 205.0, 390.0)}
    rates = {
        "rate 0.25": (38.0, 13.0, 28.0), "rate 0.5": (76.0, 17.0, 41.0), "rate 0.7": (106.0, 24.0, 66.0),
        "rate 0.8": (121.0, 35.0, 83.0), "rate 0.9": (136.0, 80.0, 230.0), "rate 1": (146.0, 240.0, 600.0),
    }  # fmt: skip
    found = []
    for point, values in {**closed, **rates}.items():
        for metric, value in zip(("jobs_per_s", "p50_ms", "p99_ms"), values, strict=True):
            found.append(one("load", "ours", point, metric, [value, value * 1.04], floor=False))
    knee = {"point": "rate 0.8", "offered_per_s": 122.0, "reached_per_s": 121.0, "p99_ms": 83.0}
    return Results(CPU, {"seed": 0, "clients": [1, 8, 32]}, tuple(found), {"knee": knee})


def loops(target: str, found: dict[str, tuple[float, float]]) -> list[Measurement]:
    """Of a load: point -> jobs/s and p99 in ms."""
    return [
        one("load", target, point, metric, [value], floor=False)
        for point, both in found.items()
        for metric, value in zip(("jobs_per_s", "p99_ms"), both, strict=True)
    ]


def coldstart() -> Results:
    """Stages that overlap, of two page caches, and of the floor."""
    stages = {
        "interpreter": 25,
        "SDK import": 150,
        "verify": 110,
        "imports": 270,
        "engine load": 40,
        "task": 22,
        "warm-up": 14,
    }
    floor = {"interpreter": 21, "imports": 305, "session": 43, "tokenizer": 21}
    found: list[Measurement] = []
    details: dict[str, Any] = {"ours": {}, "floor": {}}
    for cache, times in (("warm", 1.0), ("cold", 3.1)):
        for target, ms in (("ours", stages), ("floor", floor)):
            details[target][cache] = {stage: [value * times, value * times * 1.1] for stage, value in ms.items()}
        for target, metric, seconds in (
            ("ours", "ready_s", 0.39), ("ours", "first_take_s", 0.42), ("ours", "first_answer_s", 0.44),
            ("floor", "ready_s", 0.39), ("floor", "first_answer_s", 0.40),
        ):  # fmt: skip
            found.append(
                one("coldstart", target, cache, metric, [seconds * times, seconds * times * 1.02], floor=False)
            )
    return Results(CPU, {"runs": 2}, tuple(found), {"stages": details})


def latency(environment: dict[str, Any], first_ms: float) -> Results:
    """Two models at two lengths."""
    found = []
    for model, size in (("minilm", 0.15), ("bert-base", 1.0)):
        for tokens in (16, 128):
            for batch in (1, 8, 32):
                ms = first_ms * size * (0.4 + 0.6 * (tokens * batch / 128) ** 0.9)
                for target, times in _LATENCIES.items():
                    point = f"{model}, batch {batch}, {tokens} tokens"
                    found.append(one("latency", target, point, "p50_ms", [ms * times], floor=False))
                    found.append(one("latency", target, point, "p99_ms", [ms * times * 1.3], floor=False))
    return Results(environment, {"precision": "fp32"}, tuple(found))


def accuracy() -> Results:
    """fp32, which everything is compared with, and int8."""
    figures = {"ours": (1.0, 100.0), "ours-int8": (0.9871, 190.0), "floor": (1.0, 110.0)}
    found = []
    for target, (cosine, rate) in figures.items():
        found.append(one("accuracy", target, "500 texts", "rows_per_s", [rate, rate * 1.02]))
        found.append(one("accuracy", target, "500 texts", "min_cosine", [cosine, cosine], floor=False))
        found.append(one("accuracy", target, "500 texts", "mean_cosine", [(1 + cosine) / 2] * 2, floor=False))
    return Results(CPU, {}, tuple(found))
