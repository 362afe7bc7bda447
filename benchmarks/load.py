"""One started worker under load: clients that wait for their answer, clients that do not, idle and bulk jobs.

The floor runs in the same rounds: onnxruntime and tokenizers alone on the same texts, or, for the fake engine, the
least that a worker can be (bare_worker.py). Only the ratios of one run count: machines are shared and noisy, and
emulator and clients use the worker's cores.

Names in results files, scenario "load":
    targets   ours, ours-int8, ours-fake ...; floor; bare (the floor of ours-fake)
    points    "idle" (jobs that find an idle worker), "1 client", "32 clients" (closed loops), "rate 0.5" (open loop at
              half of the round's best closed loop), "rate 20/s" (at 20 jobs/s), "bulk" (one job of many texts)
              of the floor: "idle", "one by one", "batches" (sorted by length), "equal lengths", "bulk" (the faster of
              these two)
    metrics   jobs_per_s (texts a second; not of idle), p50_ms, p90_ms, p99_ms, max_ms, of bulk jobs_per_s alone
    details   counts: jobs and errors of each round; open_loop: offered and reached jobs/s of each round; knee
Latencies are multiples of the floor's at the same point, or of its p50_ms "one by one" where it has no such point.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import arguments
from benchmarks.clients import Answers, Clients, Json, embed_jobs
from benchmarks.engines import identity, served_engine, served_precision
from benchmarks.exported import demo_bundle
from benchmarks.floor import Floor
from benchmarks.knee import KNEE, knee
from benchmarks.measure import figure, markdown, percentile, say
from benchmarks.results_file import Results, environment, write
from benchmarks.rounds import Figures, Round, measurements, median_ratio, options_of, plain, target_of
from benchmarks.worker_process import WorkerProcess, watched
from benchmarks.workload import arrivals, stream, texts
from engine.bundle import open_bundle
from engine.config import ENGINES, Settings

SCENARIO = "load"
FLOOR, BARE = "floor", "bare"
IDLE, BULK = "idle", "bulk"
ONE_BY_ONE, BATCHES, EQUAL = "one by one", "batches", "equal lengths"

_BARE_WORKER = Path(__file__).parent / "bare_worker.py"
_WARM_UP_JOBS = 50
_PAUSE_S = 0.05  # before each idle job: far longer than a scheduler needs to become idle
_BULK_TIMEOUT_S = 600.0
_MOST_JOBS = 10_000_000  # of an open loop: each is planned before the first is sent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--clients", type=arguments.count, nargs="*", default=[1, 8, 32], help="closed loops (default: 1 8 32)"
    )
    parser.add_argument(
        "--rates",
        nargs="*",
        type=arguments.rate,
        default=["25%", "50%", "70%", "80%", "90%", "100%"],
        metavar="RATE",
        help="open loops, in jobs/s or in %% of the best closed loop (default: 25%% 50%% 70%% 80%% 90%% 100%%)",
    )
    parser.add_argument(
        "--seconds", type=arguments.seconds, default=5.0, help="length of each loop (default: %(default)s)"
    )
    parser.add_argument(
        "--idle-jobs",
        type=arguments.count_or_none,
        default=100,
        help="jobs that find an idle worker (default: %(default)s)",
    )
    parser.add_argument(
        "--bulk-rows", type=arguments.count_or_none, default=2000, help="texts of the bulk job (default: %(default)s)"
    )
    parser.add_argument(
        "--floor-rows", type=arguments.count, default=200, help="texts of the floor, one by one (default: %(default)s)"
    )
    arguments.add_rounds(parser, 3)
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="the worker's ENGINE; fake: all but the engine (default: auto)",
    )
    arguments.add_bundle(parser, arguments.TEXTS)
    parser.add_argument("--json", type=arguments.new_file, help="also write the results to this file")


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON; 1 when a job failed. Raises ValueError for options that do not fit."""
    if not args.clients and any(rate.endswith("%") for rate in args.rates):
        raise ValueError("a rate in % is one of the best closed loop; name --clients, or --rates in jobs/s")
    fastest = max((float(rate) for rate in args.rates if not rate.endswith("%")), default=0.0)
    if fastest * args.seconds > _MOST_JOBS:
        raise ValueError(f"a loop of --rates and --seconds has {_MOST_JOBS} jobs at most; name smaller ones")
    args.bundle = args.bundle or demo_bundle()

    def keep(results: Results) -> None:
        if args.json:  # after every round: a run that is cut short leaves what it had
            write(args.json, results)

    results = measure(args, keep)
    print(table(results))
    return int(any(sum(found["errors"]) for found in results.details["counts"]))


def measure(args: argparse.Namespace, keep: Callable[[Results], None] = lambda made: None) -> Results:
    """Every load as often as there are rounds, in turn with the floor; `keep` is called after each with what there is.

    Raises RuntimeError when the worker does not start or ends, or an answer does not come.
    """
    known = environment()  # now: a file that is changed meanwhile is not what runs
    with ExitStack() as stack:
        fake = args.engine == "fake"
        floor = None if fake else Floor(args.bundle)
        clients = stack.enter_context(Clients())
        env = {"ENGINE": args.engine}
        worker = stack.enter_context(WorkerProcess.ours(clients.emulator, args.bundle, env=env))
        target = target_of(args.engine, served_precision(args.bundle, {**os.environ, **env}))
        bare = stack.enter_context(Clients()) if fake else None
        workers = [worker]
        if bare is not None:
            workers.append(stack.enter_context(WorkerProcess(bare.emulator, [sys.executable, str(_BARE_WORKER)], {})))

        runs: list[_Run] = []

        def rounds() -> None:
            for each in filter(None, (clients, bare)):
                each.one_by_one(_WARM_UP_JOBS, embed_jobs(stream()))
            for number in range(args.rounds):
                say(f"load, round {number + 1} of {args.rounds}")
                run = _Run(args)
                run.load(clients, target)
                if bare is not None:
                    run.closed(bare, BARE)
                if floor is not None:
                    run.found |= _floor(floor, args)
                runs.append(run)
                keep(_results(runs, args, known))

        watched(workers, rounds)
        worker.stop()
    return _results(runs, args, known)


class _Run:
    """One round: what was found, and what the open loops offered."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.found: Round = {}
        self.counts: dict[tuple[str, str], tuple[int, int]] = {}
        self.offered: dict[str, float] = {}
        self._args = args

    def load(self, clients: Clients, target: str) -> None:
        """Every load once, each on the same texts again."""
        args = self._args
        self.closed(clients, target)
        best = max((self.found[target, closed_loop(count)]["jobs_per_s"] for count in args.clients), default=0.0)
        for rate in args.rates:
            per_second = best * float(rate[:-1]) / 100 if rate.endswith("%") else float(rate)
            due = list(arrivals(per_second, args.seconds))
            self.offered[rate_point(rate)] = len(due) / args.seconds  # as drawn, which may be some percent off
            answers = clients.open_loop(due, self._jobs())
            # Which it was open for, whenever the last answer came; beyond that only what a queue adds to a job's time.
            answers.seconds = max(answers.seconds - statistics.median(answers.ms or [0.0]) / 1e3, args.seconds)
            self._keep(target, rate_point(rate), answers)
        if args.bulk_rows:
            payload: Json = {"texts": texts(args.bulk_rows)}
            if open_bundle(args.bundle).manifest.task in arguments.EMBEDDING:
                # As JSON numbers the vectors of 2,000 texts are 17 MB, and the platform takes 20 MB at most.
                payload["encoding_format"] = "base64"
            answers = clients.one_by_one(1, iter([payload]), timeout_s=_BULK_TIMEOUT_S)
            self._keep(target, BULK, answers)
            self.found[target, BULK] = {"jobs_per_s": args.bulk_rows / answers.ms[0] * 1e3} if answers.ms else {}

    def closed(self, clients: Clients, target: str) -> None:
        """The idle jobs and the closed loops."""
        args = self._args
        if args.idle_jobs:
            self._keep(target, IDLE, clients.one_by_one(args.idle_jobs, self._jobs(), pause_s=_PAUSE_S))
            del self.found[target, IDLE]["jobs_per_s"]  # it says how long we paused
        for count in args.clients:
            self._keep(target, closed_loop(count), clients.closed_loop(count, args.seconds, self._jobs()))

    def _jobs(self) -> Iterator[Json]:
        return embed_jobs(stream())

    def _keep(self, target: str, point: str, answers: Answers) -> None:
        for error in sorted(set(answers.errors))[:3]:
            say(f"{point}: {answers.errors.count(error)} jobs failed: {error}")
        figures = answers.summary()
        self.counts[target, point] = int(figures.pop("jobs")), int(figures.pop("errors"))
        self.found[target, point] = figures


def closed_loop(clients: int) -> str:
    """What a closed loop of `clients` is called in the results."""
    return f"{clients} client{'s' if clients > 1 else ''}"


def rate_point(rate: str) -> str:
    """What an open loop is called: a share of the best closed loop, or jobs/s."""
    return f"rate {float(rate[:-1]) / 100:g}" if rate.endswith("%") else f"rate {float(rate):g}/s"


def _floor(floor: Floor, args: argparse.Namespace) -> Round:
    """The floor on texts that the worker gets."""
    single = floor.one_by_one(texts(args.floor_rows))
    bulk = texts(args.bulk_rows or args.floor_rows)
    found: Round = {}
    if args.idle_jobs:
        found[FLOOR, IDLE] = _percentiles(floor.one_by_one(texts(args.idle_jobs), pause_s=_PAUSE_S))
    batches, equal = floor.in_batches(bulk), floor.in_equal_lengths(bulk)
    return found | {
        (FLOOR, ONE_BY_ONE): {"jobs_per_s": 1e3 / statistics.mean(single), **_percentiles(single)},
        (FLOOR, BATCHES): {"jobs_per_s": batches},
        (FLOOR, EQUAL): {"jobs_per_s": equal},
        (FLOOR, BULK): {"jobs_per_s": max(batches, equal)},
    }


def _percentiles(ms: Sequence[float]) -> Figures:
    return {f"p{percent}_ms": percentile(ms, percent) for percent in (50, 90, 99)} | {"max_ms": max(ms)}


def floor_of(target: str, point: str, metric: str) -> tuple[str, str, str] | None:
    """What a figure is measured against; see the top."""
    if target in (FLOOR, BARE) or (point.startswith("rate") and metric == "jobs_per_s"):  # this says what was offered
        return None
    if plain(target) == target_of("fake"):
        return (BARE, closed_loop(1), "p50_ms") if point.startswith("rate") else (BARE, point, metric)
    if metric != "jobs_per_s":
        same = {IDLE: IDLE, closed_loop(1): ONE_BY_ONE}.get(point)
        return (FLOOR, same, metric) if same else (FLOOR, ONE_BY_ONE, "p50_ms")
    return FLOOR, {closed_loop(1): ONE_BY_ONE, BULK: BULK}.get(point, BATCHES), metric


def _results(runs: Sequence[_Run], args: argparse.Namespace, known: Mapping[str, Any]) -> Results:
    found = measurements(SCENARIO, [run.found for run in runs], floor_of)
    counts = [
        {
            "target": target,
            "point": point,
            "jobs": [run.counts[target, point][0] for run in runs],
            "errors": [run.counts[target, point][1] for run in runs],
        }
        for target, point in runs[0].counts
    ]
    target = next(iter(runs[0].counts), ("", ""))[0]
    loops = [
        {
            "target": target,
            "point": point,
            "offered_per_s": [run.offered[point] for run in runs],
            "reached_per_s": [run.found[target, point]["jobs_per_s"] for run in runs],
            "p99_ms": [run.found[target, point]["p99_ms"] for run in runs],
        }
        for point in runs[0].offered
    ]
    details = {"counts": counts, "open_loop": loops, "knee": knee(loops)}
    served = {
        "served_engine": served_engine(args.bundle, {**os.environ, "ENGINE": args.engine}),
        "concurrency": Settings.from_environ(os.environ).max_concurrency,  # jobs that the worker took at once
    }
    return Results(known, {**options_of(vars(args)), **served, **identity(args.bundle)}, found, details)


def table(results: Results) -> str:
    """The medians of all rounds, as Markdown, with what each load is measured against in the last columns."""
    columns = ("jobs_per_s", "p50_ms", "p90_ms", "p99_ms", "max_ms")
    places = dict.fromkeys((one.target, one.point) for one in results.of(SCENARIO))
    rows = []
    for target, point in places:
        found = [results.find((SCENARIO, target, point, metric)) for metric in columns]
        ratios = [median_ratio(results, one) if one else "-" for one in found[:2]]
        rows.append([f"{target}, {point}", *(figure(one.median if one else None) for one in found), *ratios])
    lines = [
        markdown(("", "rows/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "rows/s of floor", "p50 of floor"), rows),
        "",
        "A job is one text, but for bulk. rate: open loop, part of the best closed loop, timed from planned arrivals.",
    ]
    if found_knee := results.details["knee"]:
        lines.append(
            f"knee: {found_knee['point']}, {figure(found_knee['offered_per_s'])} jobs/s offered, "
            f"p99 {figure(found_knee['p99_ms'])} ms; beyond it p99 is over {KNEE:g} times the lowest rate's, or the "
            "rate is not reached."
        )
    return "\n".join(lines)
