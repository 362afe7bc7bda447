"""A long run of mixed jobs through one worker, to see whether memory grows or files and threads are left open.

Every sample is taken between two portions of the work, when no job is out, so that what is left is left. The first
samples come after a warm-up that has filled every pool, and the last ones are judged against them.

Names in results files, scenario "soak":
    targets   ours, ours-fake ...
    points    "mixed jobs"
    metrics   rss_mb, fds, threads, processes (at the end of each fifth of the run), rss_growth (what rss_mb is there as
              a multiple of what it was at the start of that fifth)
    details   samples: all of them; jobs_per_s; health: the first and the last reply; complaints; wrong; exit_code
The repeats are the fifths, in their order. PSS and jobs/s move with what else runs, so they are no measurements.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import psutil

from benchmarks import arguments
from benchmarks.emulator import EmulatorThread, Status
from benchmarks.engines import identity, served_precision
from benchmarks.exported import demo_bundle
from benchmarks.measure import figure, markdown, say
from benchmarks.mixed_jobs import IN_FLIGHT, STALL_S, MixedLoad, mixed_jobs
from benchmarks.results_file import Results, environment, write
from benchmarks.rounds import measurements, options_of, target_of
from benchmarks.worker_process import WorkerProcess, watched
from benchmarks.workload import stream

Json = dict[str, Any]

GROWTH_LIMIT = 0.02
SCENARIO = "soak"
POINT = "mixed jobs"
_PORTIONS = 50
_REPEATS = 5  # that the portions make
_ENDS = 5  # samples at either end whose median is compared: one alone may catch a collection that is due
_MOST_CONNECTIONS = 2 * IN_FLIGHT + 4  # results on their way while as many jobs run; polls, pings


@dataclass(frozen=True)
class Sample:
    """What all processes of a worker hold, added up; memory in MB (10^6 bytes)."""

    rss_mb: float
    """Counts a page again for each process that shares it."""
    pss_mb: float
    """Shares a page among its processes, strangers included: it also moves when one of those starts or ends."""
    fds: int
    """Without TCP connections, which are kept for a while and so follow the load."""
    connections: int
    threads: int
    processes: int


@dataclass(frozen=True)
class Report:
    """A finished run: a sample before the first portion and after each one, and the seconds that the portions took.

    `wrong` holds what came back other than it should have, at most the first few.
    """

    jobs: int
    seconds: Sequence[float]
    samples: Sequence[Sample]
    health: tuple[Json, Json]
    wrong: Sequence[str]
    exit_code: int | None

    @property
    def jobs_per_s(self) -> float:
        """Over the whole run."""
        return self.jobs / sum(self.seconds)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--jobs", type=arguments.count, default=100_000, help="jobs after the warm-up (default: %(default)s)"
    )
    parser.add_argument(
        "--warm-up", type=arguments.count_or_none, default=2000, help="jobs before it (default: %(default)s)"
    )
    parser.add_argument(
        "--engine", choices=("auto", "fake"), default="auto", help="fake: all but the engine (default: auto)"
    )
    arguments.add_bundle(parser, arguments.EMBEDDING)
    parser.add_argument("--json", type=arguments.new_file, help="also write the results to this file")


def main(args: argparse.Namespace) -> int:
    """Returns 1 when memory grew by 2 % or more, files or threads were left, or an answer was wrong."""
    args.bundle = args.bundle or demo_bundle()
    known = environment()  # now: a file that is changed meanwhile is not what runs
    report = _soak(args)
    complaints = verdict(report)
    print(table(report))
    for complaint in complaints:
        print(f"soak: {complaint}")
    if args.json:
        write(args.json, results(report, args, known))
    return 1 if complaints else 0


def measure(args: argparse.Namespace) -> Results:
    """The run as measurements. Raises as `soak` does."""
    known = environment()
    return results(_soak(args), args, known)


def _soak(args: argparse.Namespace) -> Report:
    return soak(args.bundle, args.engine, args.jobs, args.warm_up)


def results(report: Report, args: argparse.Namespace, known: Mapping[str, Any]) -> Results:
    """The run, begun in the environment `known`, as measurements; see the top."""
    target = target_of(args.engine, served_precision(args.bundle, {**os.environ, "ENGINE": args.engine}))
    size = len(report.seconds) // _REPEATS
    rounds = []
    for start in range(0, size * _REPEATS, size):
        before, after = report.samples[start], report.samples[start + size]
        figures = {
            "rss_mb": after.rss_mb,
            "rss_growth": after.rss_mb / before.rss_mb,
            "fds": float(after.fds),
            "threads": float(after.threads),
            "processes": float(after.processes),
        }
        rounds.append({(target, POINT): figures})
    found = asdict(report)
    details = {name: found[name] for name in ("samples", "health", "wrong", "exit_code")}
    details |= {"jobs_per_s": report.jobs_per_s, "complaints": verdict(report)}
    options = {**options_of(vars(args)), **identity(args.bundle)}
    return Results(known, options, measurements(SCENARIO, rounds), details)


def soak(bundle: Path, engine: str, jobs: int, warm_up: int) -> Report:
    """Send `warm_up` jobs, then `jobs`, with a line of progress now and then.

    Raises RuntimeError when the worker does not start, ends before it is told to, or stops answering.
    """
    load = MixedLoad()
    with load.emulator as emulator, WorkerProcess.ours(emulator, bundle, env={"ENGINE": engine}) as worker:
        report = watched([worker], lambda: _run(load, worker, jobs, warm_up))
        return replace(report, exit_code=worker.process.returncode if worker.stop() is not None else None)


def _run(load: MixedLoad, worker: WorkerProcess, jobs: int, warm_up: int) -> Report:
    """All but the end."""
    payloads = mixed_jobs()
    # As many large jobs at once as may run, and then the longest ones: afterwards thread pools and buffers are as
    # large as they get.
    texts = list(islice(stream(seed=1), 1000))
    load.run(IN_FLIGHT, ({"texts": texts[:IN_FLIGHT]} for _ in count()))
    load.run(IN_FLIGHT, ({"texts": [max(texts, key=len)] * IN_FLIGHT} for _ in count()))
    load.run(warm_up, payloads)
    _wait_for_ping(load.emulator)
    first_health = _health(load.emulator)
    samples, seconds = [_sample(worker)], []
    for number in range(_PORTIONS):
        begin = time.perf_counter()
        load.run(jobs * (number + 1) // _PORTIONS - jobs * number // _PORTIONS, payloads)
        seconds.append(time.perf_counter() - begin)
        samples.append(_sample(worker))
        if number % 5 == 4:
            say(f"{jobs * (number + 1) // _PORTIONS} jobs: {figure(samples[-1].rss_mb)} MB resident")
    return Report(jobs, seconds, samples, (first_health, _health(load.emulator)), load.wrong, None)


def verdict(report: Report) -> list[str]:
    """What is wrong, a sentence each; empty when nothing is."""
    before, after = ends(report.samples)
    complaints = [f"wrong answer: {wrong}" for wrong in report.wrong]
    if (growth := after.rss_mb / before.rss_mb - 1) >= GROWTH_LIMIT:
        complaints.append(f"resident memory grew by {growth:.1%}; allowed is less than {GROWTH_LIMIT:.0%}")
    for name, what in (("fds", "open files"), ("threads", "threads"), ("processes", "processes")):
        if getattr(after, name) > getattr(before, name):
            complaints.append(f"{what} grew from {getattr(before, name)} to {getattr(after, name)}")
    if after.connections > _MOST_CONNECTIONS:
        complaints.append(f"{after.connections} connections are open; the load explains {_MOST_CONNECTIONS}")
    if report.exit_code != 0:
        how = "had to be killed" if report.exit_code is None else f"ended with exit code {report.exit_code}"
        complaints.append(f"the worker {how} after SIGTERM")
    return complaints


def ends(samples: Sequence[Sample]) -> tuple[Sample, Sample]:
    """The medians of the first and of the last samples."""
    size = max(1, min(_ENDS, len(samples) // 2))
    return _median(samples[:size]), _median(samples[-size:])


def _median(samples: Sequence[Sample]) -> Sample:
    # median_low: the count of files is one that was seen, also where there are two samples.
    return Sample(**{f.name: statistics.median_low(getattr(s, f.name) for s in samples) for f in fields(Sample)})


def table(report: Report) -> str:
    """The figures at both ends, as Markdown."""
    before, after = ends(report.samples)
    rows = []
    for name, label in _ROWS.items():
        old, new = getattr(before, name), getattr(after, name)
        if isinstance(old, float):
            rows.append((label, f"{old:.1f}", f"{new:.1f}", f"{new / old - 1:+.2%}"))
        else:
            rows.append((label, str(old), str(new), f"{new - old:+d}"))
    title = f"{report.jobs} jobs, {IN_FLIGHT} in flight, {figure(report.jobs_per_s)} jobs/s"
    return f"{title}\n\n" + markdown(("", "after the warm-up", "at the end", "growth"), rows)


_ROWS = {
    "rss_mb": "RSS of all processes, MB",
    "pss_mb": "PSS of all processes, MB",
    "fds": "open files",
    "connections": "connections",
    "threads": "threads",
    "processes": "processes",
}


def _health(emulator: EmulatorThread) -> Json:
    record = emulator.wait(emulator.submit({"health": True}), STALL_S)
    if record.status is not Status.COMPLETED:
        raise RuntimeError(f"the worker's health cannot be had: {record.error}")
    report: Json = record.output
    return report


def _wait_for_ping(emulator: EmulatorThread) -> None:
    """The first ping brings a library and a thread, some time after the first job."""
    deadline = time.monotonic() + STALL_S
    while not any(worker.ping_count for worker in list(emulator.workers.values())):
        if time.monotonic() > deadline:
            raise RuntimeError("the worker does not ping")
        time.sleep(0.05)


def _sample(worker: WorkerProcess) -> Sample:
    main = psutil.Process(worker.process.pid)
    tree = [main, *main.children(recursive=True)]
    memory = [process.memory_full_info() for process in tree]
    connections = sum(len(process.net_connections("tcp")) for process in tree)
    return Sample(
        rss_mb=sum(of.rss for of in memory) / 1e6,
        pss_mb=sum(of.pss for of in memory) / 1e6,
        fds=sum(process.num_fds() for process in tree) - connections,
        connections=connections,
        threads=sum(process.num_threads() for process in tree),
        processes=len(tree),
    )
