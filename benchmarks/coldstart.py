"""How long a start takes, stage by stage, beside the least that any process with this model must do.

The worker starts with a job already queued: what counts is the time from exec to its answer. Floor and worker take
turns, each with a warm and a cold page cache. Nothing here imports what the worker imports (see
page_cache.py).

Names in results files, scenario "coldstart":
    targets   ours, ours-fake ...; floor (targets/floor_boot.py)
    points    "warm", "cold" (the page cache)
    metrics   first_take_s (exec to the first request for a job; ours), ready_s (ours: start of the process to an engine
              that is warm; floor: exec to the end of its loading), first_answer_s (exec to the answer)
    details   stages: target -> point -> stage -> ms of each run; some of the worker's run side by side
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import arguments, import_times
from benchmarks.emulator import EmulatorThread
from benchmarks.engines import identity, served_precision
from benchmarks.exported import demo_bundle
from benchmarks.floor_files import files
from benchmarks.measure import figure, markdown, percentile, say, times
from benchmarks.page_cache import way_to_drop
from benchmarks.results_file import Results, environment, write
from benchmarks.rounds import Figures, Round, measurements, options_of, target_of
from benchmarks.worker_process import WorkerProcess, watched
from benchmarks.workload import texts
from engine.bundle import open_bundle
from engine.config import ENGINES
from engine.probe import cpu_quota

_FLOOR = Path(__file__).parent / "targets" / "floor_boot.py"
_TEXT = texts(1, shortest=16, longest=16)[0]
SCENARIO = "coldstart"
FLOOR = "floor"
_MOMENTS = ("ready", "first take")  # of boot_ms: counted from the start of the process; the others are durations
_FLOORS = {"ready_s": "ready_s", "first_take_s": "ready_s", "first_answer_s": "first_answer_s"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--runs", type=arguments.count, default=10, help="starts of each kind (default: %(default)s)")
    arguments.add_bundle(parser, arguments.TEXTS)
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="the worker's ENGINE (default: %(default)s)")
    parser.add_argument(
        "--warm-only", action="store_true", help="leave the page cache alone; dropping it slows down the whole machine"
    )
    parser.add_argument("--imports", action="store_true", help="only show what the worker's imports cost, by package")
    parser.add_argument("--json", type=arguments.new_file, help="also write the results to this file")


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON."""
    args.bundle = args.bundle or demo_bundle()
    if args.imports:
        print(import_times.table(import_times.costs(_import_lines(args.bundle, {"ENGINE": args.engine}))))
        return 0
    results = measure(args)
    print(table(results))
    if args.json:
        write(args.json, results)
    return 0


class Start(NamedTuple):
    """One start: its figures, and its stages in ms."""

    figures: Figures
    stages: dict[str, float]


def measure(args: argparse.Namespace) -> Results:
    """Floor and worker with every page cache, `args.runs` times in turn; one start each before that is not counted.

    Raises RuntimeError when one does not start or answer.
    """
    caches: dict[str, Callable[[], None]] = {"warm": lambda: None}
    if not args.warm_only:
        caches["cold"], sentence = way_to_drop(args.bundle)
        print(sentence, flush=True)
    known, env = environment(), {"ENGINE": args.engine}  # now: a file that is changed meanwhile is not what runs
    start_floor(args.bundle)
    start_ours(args.bundle, env)
    ours = target_of(args.engine, served_precision(args.bundle, {**os.environ, **env}))  # a first start builds a plan
    starts: dict[str, Callable[[], Start]] = {
        FLOOR: lambda: start_floor(args.bundle),
        ours: lambda: start_ours(args.bundle, env),
    }
    rounds: list[Round] = []
    stages: dict[str, dict[str, dict[str, list[float]]]] = {
        target: {cache: {} for cache in caches} for target in starts
    }
    for run in range(args.runs):
        say(f"coldstart, run {run + 1} of {args.runs}")
        rounds.append({})
        for cache, prepare in caches.items():
            for target, start in starts.items():
                prepare()
                one = start()
                rounds[-1][target, cache] = one.figures
                for stage, ms in one.stages.items():
                    stages[target][cache].setdefault(stage, []).append(ms)
    options = {**options_of(vars(args)), **identity(args.bundle)}
    return Results(known, options, measurements(SCENARIO, rounds, floor_of), {"stages": stages})


def floor_of(target: str, point: str, metric: str) -> tuple[str, str, str] | None:
    """What a figure is measured against: a worker takes its first job when it is ready, so to the floor's ready_s."""
    return None if target == FLOOR else (FLOOR, point, _FLOORS[metric])


def start_ours(bundle: Path, env: Mapping[str, str]) -> Start:
    """One start of the worker with a job in the queue; the stages are its own, from its health reply.

    Raises RuntimeError when it does not start, ends by itself, or fails the job.
    """
    with EmulatorThread() as emulator:
        job = emulator.submit({"text": _TEXT})
        with WorkerProcess.ours(emulator, bundle, env=env) as worker:
            answer = watched([worker], lambda: emulator.wait(job, 120))
            if answer.error is not None or answer.done is None:
                raise RuntimeError(f"the first job failed: {answer.error}")
            stages = emulator.wait(emulator.submit({"health": True}), 60).output["boot_ms"]
            worker.stop()
            figures = {
                "ready_s": stages["ready"] / 1e3,
                "first_take_s": worker.first_take_s,
                "first_answer_s": answer.done - worker.started,
            }
            return Start(figures, {stage: ms for stage, ms in stages.items() if _is_stage(stage, ms)})


def _is_stage(name: str, ms: object) -> bool:
    return name not in _MOMENTS and isinstance(ms, int | float)


def start_floor(bundle_path: Path) -> Start:
    """One start of targets/floor_boot.py."""
    opened = files(open_bundle(bundle_path))
    command = [sys.executable, str(_FLOOR), str(opened.graph), str(int(opened.fused)), str(opened.tokenizer)]
    command += [str(cpu_quota()), opened.prompt + _TEXT]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        stages, ready = process.stdout.readline(), time.perf_counter() - begin
        answer, answered = process.stdout.readline(), time.perf_counter() - begin
    if process.returncode or not answer:
        raise RuntimeError(f"{_FLOOR.name} ended with exit code {process.returncode}")
    found: dict[str, float] = json.loads(stages)
    figures = {"ready_s": ready, "first_answer_s": answered}
    return Start(figures, {"interpreter": ready * 1e3 - sum(found.values()), **found})


def table(results: Results) -> str:
    """Median and 90th percentile of every stage, the worker's above the floor's, and the ratios to it; Markdown."""
    stages: dict[str, dict[str, dict[str, list[float]]]] = results.details["stages"]
    found = results.of(SCENARIO)
    caches = list(dict.fromkeys(one.point for one in found))
    lines: dict[str, dict[str, Sequence[float]]] = {}  # label -> cache -> a value a run
    ratios: dict[str, dict[str, Sequence[float]]] = {}
    for target in sorted(stages, key=lambda name: name == FLOOR):
        before = "floor: " if target == FLOOR else ""
        for cache, by_stage in stages[target].items():
            for stage, values in by_stage.items():
                lines.setdefault(before + stage, {})[cache] = values
        for one in (one for one in found if one.target == target):
            values = [value * 1e3 for value in one.repeats if value is not None]
            lines.setdefault(before + _MEANS[one.metric], {})[one.point] = values
            if one.floor:
                label = f"{_MEANS[one.metric]} / floor's {_MEANS[one.floor[2]]}"
                ratios.setdefault(label, {})[one.point] = results.ratios(one)
    rows = [[label, *_cells(by_cache, caches, figure)] for label, by_cache in lines.items()]
    rows += [[label, *_cells(by_cache, caches, times)] for label, by_cache in ratios.items()]
    header = ["ms; some stages run side by side"]
    header += [f"{cache} {percent}" for cache in caches for percent in ("p50", "p90")]
    return markdown(header, rows)


_MEANS = {
    "ready_s": "exec to ready",
    "first_take_s": "exec to first take",
    "first_answer_s": "exec to first answer",
}


def _cells(by_cache: Mapping[str, Sequence[float]], caches: Sequence[str], show: Callable[[float], str]) -> list[str]:
    return [show(percentile(by_cache.get(cache, []), percent)) for cache in caches for percent in (50, 90)]


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
