"""How long a start takes, stage by stage, beside the least that any process with this model must do.

The worker starts with a job already queued: what counts is the time from exec to its answer. Floor and worker take
turns, each with a warm and, where that can be had, a cold page cache. Nothing here imports what the worker imports (see
page_cache.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import import_times
from benchmarks.emulator import EmulatorThread
from benchmarks.exported import BUILD, exported
from benchmarks.floor_files import files
from benchmarks.measure import figure, markdown, percentile, ratio, times, write_json
from benchmarks.page_cache import way_to_drop
from benchmarks.weights import minilm_folder
from benchmarks.worker_process import WorkerProcess
from benchmarks.workload import texts
from engine.bundle import open_bundle
from engine.probe import cpu_quota

Figures = dict[str, float]

_FLOOR = Path(__file__).parent / "targets" / "floor_boot.py"
_TEXT = texts(1, shortest=16, longest=16)[0]
_TAKE, _ANSWER = "exec to first take", "exec to first answer"
_READY = "exec to ready"
_MOMENTS = ("ready", "first take")  # of boot_ms: counted from the start of the process; the others are durations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--runs", type=int, default=10, help="starts of each kind (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="a bundle to serve (default: all-MiniLM-L6-v2, exported)")
    parser.add_argument("--engine", default="auto", help="the worker's ENGINE (default: %(default)s)")
    parser.add_argument(
        "--warm-only", action="store_true", help="leave the page cache alone; dropping it slows down the whole machine"
    )
    parser.add_argument("--imports", action="store_true", help="only show what the worker's imports cost, by package")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def main(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the JSON."""
    bundle = args.bundle or exported(minilm_folder(), BUILD / "demo" / "bundle")
    env = {"ENGINE": args.engine}
    if args.imports:
        print(import_times.table(import_times.costs(_import_lines(bundle, env))))
        return 0
    caches: dict[str, Callable[[], None]] = {"warm": lambda: None}
    if not args.warm_only:
        drop, sentence = way_to_drop(bundle)
        print(sentence, flush=True)
        if drop is not None:
            caches["cold"] = drop
    starts = {"floor": lambda: start_floor(bundle), "ours": lambda: start_ours(bundle, env)}
    runs = measure(starts, caches, args.runs)
    print(table(runs))
    if args.json:
        write_json(args.json, {"runs": runs})
    return 0


Runs = dict[str, dict[str, list[Figures]]]
"""Cache ("warm", "cold") -> target ("floor", "ours") -> one start each, in ms by stage."""


def measure(starts: Mapping[str, Callable[[], Figures]], caches: Mapping[str, Callable[[], None]], count: int) -> Runs:
    """Every start with every cache `count` times, in turn; one start each before that is not counted."""
    runs: Runs = {cache: {target: [] for target in starts} for cache in caches}
    for start in starts.values():
        start()
    for run in range(count):
        print(f"run {run + 1} of {count}", file=sys.stderr, flush=True)
        for cache, prepare in caches.items():
            for target, start in starts.items():
                prepare()
                runs[cache][target].append(start())
    return runs


def start_ours(bundle: Path, env: Mapping[str, str]) -> Figures:
    """One start of the worker with a job in the queue, in ms; the stages are its own, from its health reply."""
    with EmulatorThread() as emulator:
        job = emulator.submit({"text": _TEXT})
        with WorkerProcess.ours(emulator, bundle, env=env) as worker:
            answer = emulator.wait(job, 120)
            if answer.error is not None or answer.done is None:
                raise RuntimeError(f"the first job failed: {answer.error}")
            stages = emulator.wait(emulator.submit({"health": True}), 60).output["boot_ms"]
            worker.stop()
            return {
                **{stage: ms for stage, ms in stages.items() if _is_stage(stage, ms)},
                _TAKE: worker.first_take_s * 1e3,
                _ANSWER: (answer.done - worker.started) * 1e3,
            }


def _is_stage(name: str, ms: object) -> bool:
    return name not in _MOMENTS and isinstance(ms, int | float)


def start_floor(bundle_path: Path) -> Figures:
    """One start of targets/floor_boot.py, in ms: its stages, and from exec until it was ready and until it answered."""
    opened = files(open_bundle(bundle_path))
    command = [sys.executable, str(_FLOOR), str(opened.graph), str(int(opened.fused)), str(opened.tokenizer)]
    begin = time.perf_counter()
    with subprocess.Popen([*command, str(cpu_quota()), _TEXT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        stages, ready = process.stdout.readline(), (time.perf_counter() - begin) * 1e3
        answer, answered = process.stdout.readline(), (time.perf_counter() - begin) * 1e3
    if process.returncode or not answer:
        raise RuntimeError(f"{_FLOOR.name} ended with exit code {process.returncode}")
    found: Figures = json.loads(stages)
    return {"interpreter": ready - sum(found.values()), **found, _READY: ready, _ANSWER: answered}


def table(runs: Runs) -> str:
    """Median and 90th percentile of every stage, the worker's above the floor's, and their ratios; Markdown."""
    rows = []
    for target, label in (("ours", "{}"), ("floor", "floor: {}")):
        for stage in next(iter(runs.values()))[target][0]:
            cells = [figure(ms) for found in runs.values() for ms in _p50_p90(found[target], stage)]
            rows.append([label.format(stage), *cells])
    for label, ours, floor in (
        ("first take / floor's ready", _TAKE, _READY),
        ("first answer / floor's first answer", _ANSWER, _ANSWER),
    ):
        cells = []
        for found in runs.values():
            pairs = zip(_p50_p90(found["ours"], ours), _p50_p90(found["floor"], floor), strict=True)
            cells += [times(ratio(above, below)) for above, below in pairs]
        rows.append([label, *cells])
    header = ["ms; some stages run side by side"]
    header += [f"{cache} {percent}" for cache in runs for percent in ("p50", "p90")]
    return markdown(header, rows)


def _p50_p90(starts: Sequence[Figures], stage: str) -> tuple[float, float]:
    values = [start[stage] for start in starts if stage in start]
    return percentile(values, 50), percentile(values, 90)


def _import_lines(bundle: Path, env: Mapping[str, str]) -> list[str]:
    """What `-X importtime` prints of a worker that starts, answers one job and stops."""
    command = [sys.executable, "-X", "importtime", "-m", "handler"]
    with EmulatorThread() as emulator, tempfile.TemporaryFile("w+") as log:
        job = emulator.submit({"text": _TEXT})
        with WorkerProcess(emulator, command, {**env, "BUNDLE": str(bundle)}, log=log) as worker:
            emulator.wait(job, 120)
            worker.stop()
        log.seek(0)
        return log.readlines()
