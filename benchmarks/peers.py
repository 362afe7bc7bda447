"""This worker beside the ones that users would run instead: same texts, same machine, in turn, in one run.

The floor, onnxruntime and tokenizers alone on the same texts one by one, runs beside them. Only the ratios of one run
count: machines are shared and noisy.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import peer_env
from benchmarks.clients import Answers, Clients, Json, embed_jobs
from benchmarks.emulator import EmulatorThread
from benchmarks.exported import BUILD, exported
from benchmarks.floor import rows_per_second
from benchmarks.measure import figure, markdown, medians, ratio, times, write_json
from benchmarks.weights import minilm_folder
from benchmarks.worker_process import STOP_TIMEOUT_S, WorkerProcess
from benchmarks.workload import stream, texts

Start = Callable[[EmulatorThread, int], WorkerProcess]
"""Starts a worker of an endpoint with so many jobs at once."""
Figures = dict[str, float | None]

PEERS = {
    "int8": "ours in int8",
    "stock": "stock SDK + sentence-transformers",
    "infinity": "stock SDK + infinity, C=300",  # its worker takes 300 jobs at once, however many clients there are
}
_TARGETS = Path(__file__).parent / "targets"
_CLIENTS = 32
_IDLE_JOBS = 10
# The SDK's start-up checks are the platform's, not a worker's; without them the stock worker starts faster.
_QUIET = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true", "RUNPOD_LOG_LEVEL": "ERROR"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--repeats", type=int, default=3, help="rounds of runs (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each measurement (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument(
        "--with",
        dest="peers",
        type=_names,
        default=["stock"],
        metavar="PEERS",
        help=f"of {','.join(PEERS)}; infinity needs an environment of its own, made now if need be (default: stock)",
    )


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"there is no peer {unknown[0]!r}; choose from {', '.join(PEERS)}")
    return names


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON. A peer that cannot be had is left out, with its reason."""
    model = minilm_folder()
    bundle = exported(model, BUILD / "demo" / "bundle")
    environment = _environment()
    starts: dict[str, Start] = {"ours": partial(_ours, bundle)}
    if "int8" in args.peers:
        starts["int8"] = partial(_ours, exported(model, BUILD / "demo" / "bundle-int8", "--precision", "int8"))
    if "stock" in args.peers:
        starts["stock"] = partial(_stock, model)
    if "infinity" in args.peers:
        try:
            python = peer_env.python_of("infinity")
            environment["infinity"] = peer_env.versions(python, ("infinity-emb", "runpod", "torch", "transformers"))
            starts["infinity"] = partial(_infinity, python, model)
        except RuntimeError as error:
            print(f"infinity is left out: {error}", file=sys.stderr)
    runs: dict[str, list[Figures]] = {name: [] for name in starts}
    floor = []
    for repeat in range(args.repeats):
        floor.append(rows_per_second(bundle, texts(200)))
        for name, start in list(starts.items()):
            print(f"run {repeat + 1} of {args.repeats}: {name}", file=sys.stderr, flush=True)
            try:
                runs[name].append(_measure(start, args.seconds))
            except RuntimeError as error:
                if name == "ours":
                    raise
                print(f"{name} is left out: {error}", file=sys.stderr)
                del starts[name], runs[name]
    results = {"environment": environment, "floor_rows_per_s": floor, "runs": runs}
    print(table(results))
    if args.json:
        write_json(args.json, results)
    return 0


def _ours(bundle: Path, emulator: EmulatorThread, concurrency: int) -> WorkerProcess:
    return WorkerProcess.ours(emulator, bundle, env={**_QUIET, "MAX_CONCURRENCY": str(concurrency)})


def _stock(model: Path, emulator: EmulatorThread, concurrency: int) -> WorkerProcess:
    env = {**_QUIET, "MODEL_FOLDER": str(model), "CONCURRENCY": str(concurrency)}
    return WorkerProcess(emulator, [sys.executable, str(_TARGETS / "stock_sentence_transformers.py")], env)


def _infinity(python: Path, model: Path, emulator: EmulatorThread, concurrency: int) -> WorkerProcess:
    env = {**_QUIET, "MODEL_FOLDER": str(model), "CONCURRENCY": "300"}
    env |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_HOME": str(python.parent.parent)}  # for its cache
    return WorkerProcess(emulator, [str(python), str(_TARGETS / "infinity.py")], env)


def _measure(start: Start, seconds: float) -> Figures:
    """Two starts of one worker: for one job at a time, and for many clients."""
    figures: Figures = {}
    with Clients() as clients, start(clients.emulator, 1) as worker:
        figures["first_take_s"] = worker.first_take_s
        idle = clients.one_by_one(_IDLE_JOBS, embed_jobs(stream(seed=1)), pause_s=0.2)
        figures["idle_job_ms"] = _summary(idle)["p50_ms"]
        figures["jobs_per_s_1_client"] = _summary(clients.closed_loop(1, seconds, _jobs()))["jobs_per_s"]
        figures.update(worker.memory_mb())
        figures["sigterm_to_exit_s"] = worker.stop()
    with Clients() as clients, start(clients.emulator, _CLIENTS):
        answers = _summary(clients.closed_loop(_CLIENTS, seconds, _jobs()))
        figures[f"jobs_per_s_{_CLIENTS}_clients"] = answers["jobs_per_s"]
        figures[f"p50_ms_{_CLIENTS}_clients"] = answers["p50_ms"]
        figures[f"p99_ms_{_CLIENTS}_clients"] = answers["p99_ms"]
    return figures


def _jobs() -> Iterator[Json]:
    return embed_jobs(stream(seed=2))


def _summary(answers: Answers) -> dict[str, float]:
    if answers.errors:
        raise RuntimeError(f"{len(answers.errors)} jobs failed: {answers.errors[0]}")
    return answers.summary()


_ROWS: Mapping[str, tuple[str, str, bool]] = {
    "first_take_s": ("exec to first take", "s", False),
    "idle_job_ms": ("idle job, submit to done, p50", "ms", False),
    "jobs_per_s_1_client": ("1 client, C=1", "jobs/s", True),
    f"jobs_per_s_{_CLIENTS}_clients": (f"{_CLIENTS} clients, C={_CLIENTS}", "jobs/s", True),
    f"p50_ms_{_CLIENTS}_clients": (f"{_CLIENTS} clients, p50", "ms", False),
    f"p99_ms_{_CLIENTS}_clients": (f"{_CLIENTS} clients, p99", "ms", False),
    "tree_rss_mb": ("RSS of all its processes", "MB", False),
    "tree_pss_mb": ("PSS of all its processes", "MB", False),
    "sigterm_to_exit_s": ("SIGTERM to exit, idle", "s", False),
}
"""Figure -> label, unit, whether more is better."""


def table(results: Mapping[str, Any]) -> str:
    """The medians of a results file, as Markdown: a column for each peer, and how many times better ours is."""
    found = {name: medians(figures) for name, figures in results["runs"].items()}
    ours = found.pop("ours")
    floor = statistics.median(results["floor_rows_per_s"])
    rows = []
    for key, (label, unit, more_is_better) in _ROWS.items():
        if key not in ours:
            continue  # results of before this was measured
        row = [label, figure(ours[key], unit)]
        for peer in found.values():
            above, below = (ours[key], peer[key]) if more_is_better else (peer[key], ours[key])
            row += [_peer_figure(key, peer[key], unit), times(ratio(above, below))]
        rows.append(row)
    header = ["", "ours", *(cell for name in found for cell in (PEERS[name], "ratio"))]
    share = ratio(ours["jobs_per_s_1_client"], floor)
    return "\n".join(
        [
            markdown(header, rows, aligned=False),
            "",
            f"onnxruntime and tokenizers alone, one by one: {figure(floor)} rows/s; 1 client gets {share:.0%} of it.",
        ]
    )


def _peer_figure(key: str, value: float | None, unit: str) -> str:
    if key == "sigterm_to_exit_s" and value is None:
        return f"killed after {STOP_TIMEOUT_S:g} s"
    return figure(value, unit)


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
