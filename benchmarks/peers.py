"""This worker beside a stock-SDK worker with sentence-transformers: same texts, same machine, in turn, in one run.

The floor, onnxruntime and tokenizers alone on the same texts one by one, runs beside them. Only the ratios of one run
count: machines are shared and noisy.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.emulator import EmulatorThread
from benchmarks.exported import BUILD, exported
from benchmarks.floor import rows_per_second
from benchmarks.weights import minilm_folder
from benchmarks.worker_process import WorkerProcess
from benchmarks.workload import texts

Start = Callable[[EmulatorThread, int], WorkerProcess]
Figures = dict[str, float]

_STOCK = Path(__file__).parent / "targets" / "stock_sentence_transformers.py"
_CLIENTS = 32
# The SDK's start-up checks are the platform's, not a worker's; without them the stock worker starts faster.
_QUIET = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true", "RUNPOD_LOG_LEVEL": "ERROR"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each measurement (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON."""
    model = minilm_folder()
    bundle = exported(model, BUILD / "demo" / "bundle")
    targets: dict[str, Start] = {"ours": partial(_ours, bundle), "stock": partial(_stock, model)}
    runs: dict[str, list[Figures]] = {name: [] for name in targets}
    floor = []
    for repeat in range(args.repeats):
        floor.append(rows_per_second(bundle, texts(200)))
        for name, start in targets.items():
            print(f"run {repeat + 1} of {args.repeats}: {name}", file=sys.stderr, flush=True)
            runs[name].append(_measure(start, args.seconds))
    results = {"environment": _environment(), "floor_rows_per_s": floor, "runs": runs}
    print(table(results))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def _ours(bundle: Path, emulator: EmulatorThread, concurrency: int) -> WorkerProcess:
    return WorkerProcess.ours(emulator, bundle, env={**_QUIET, "MAX_CONCURRENCY": str(concurrency)})


def _stock(model: Path, emulator: EmulatorThread, concurrency: int) -> WorkerProcess:
    env = {**_QUIET, "MODEL_FOLDER": str(model), "CONCURRENCY": str(concurrency)}
    return WorkerProcess(emulator, [sys.executable, str(_STOCK)], env)


def _measure(start: Start, seconds: float) -> Figures:
    figures: Figures = {}
    with EmulatorThread() as emulator, start(emulator, 1) as worker:
        figures["first_take_s"] = worker.first_take_s
        figures["idle_job_ms"] = _idle_job_ms(emulator)
        figures["jobs_per_s_1_client"] = _jobs_per_second(emulator, 1, seconds)
        figures.update(worker.memory_mb())
        figures["sigterm_to_exit_s"] = worker.stop() or float("nan")
    with EmulatorThread() as emulator, start(emulator, _CLIENTS):
        figures[f"jobs_per_s_{_CLIENTS}_clients"] = _jobs_per_second(emulator, _CLIENTS, seconds)
    return figures


def _idle_job_ms(emulator: EmulatorThread) -> float:
    """Median over jobs that each find an idle worker, submission to answer, in ms."""
    times = []
    for text in texts(10, seed=1):
        time.sleep(0.2)
        record = emulator.wait(emulator.submit({"text": text}), 60)
        assert record.done is not None and record.error is None, record.error
        times.append((record.done - record.submitted) * 1e3)
    return statistics.median(times)


def _jobs_per_second(emulator: EmulatorThread, clients: int, seconds: float) -> float:
    """Closed loop: each of `clients` sends its next job when the last one is answered."""
    source = iter(texts(100_000, seed=2))
    waiting = [emulator.submit({"text": next(source)}) for _ in range(clients)]
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        record = emulator.wait(waiting.pop(0), 60)
        assert record.error is None, record.error
        done += 1
        waiting.append(emulator.submit({"text": next(source)}))
    rate = done / (time.perf_counter() - begin)
    for record in waiting:
        emulator.wait(record, 60)
    return rate


def _median(figures: list[Figures]) -> Figures:
    return {name: statistics.median(run[name] for run in figures) for name in figures[0]}


_ROWS: Mapping[str, tuple[str, str, bool]] = {
    "first_take_s": ("exec to first take", "s", False),
    "idle_job_ms": ("idle job, submit to done, p50", "ms", False),
    "jobs_per_s_1_client": ("1 client, C=1", "jobs/s", True),
    f"jobs_per_s_{_CLIENTS}_clients": (f"{_CLIENTS} clients, C={_CLIENTS}", "jobs/s", True),
    "main_rss_mb": ("RSS of the worker process", "MB", False),
    "tree_pss_mb": ("PSS with its children", "MB", False),
    "sigterm_to_exit_s": ("SIGTERM to exit, idle", "s", False),
}


def table(results: Mapping[str, Any]) -> str:
    """The medians of a results file, as Markdown."""
    medians = {name: _median(figures) for name, figures in results["runs"].items()}
    floor = statistics.median(results["floor_rows_per_s"])
    lines = [
        "| | ours | stock SDK + sentence-transformers | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for key, (label, unit, higher_is_better) in _ROWS.items():
        ours, stock = medians["ours"][key], medians["stock"][key]
        ratio = ours / stock if higher_is_better else stock / ours
        lines.append(f"| {label} | {_figure(ours)} {unit} | {_figure(stock)} {unit} | {_figure(ratio)}x |")
    share = medians["ours"]["jobs_per_s_1_client"] / floor
    lines.append("")
    lines.append(
        f"onnxruntime and tokenizers alone, one by one: {_figure(floor)} rows/s; 1 client gets {share:.0%} of it."
    )
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _environment() -> dict[str, Any]:
    packages = ("runpod", "onnxruntime", "tokenizers", "numpy", "sentence-transformers", "torch", "transformers")
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "cpus": len(cpu),
        "versions": {name: version(name) for name in packages},
    }
