"""Workers at a distance from the platform, as on RunPod: TLS, and a round trip between a request and its reply.

On localhost a connection costs nothing; here it takes two or three round trips to open one. So it shows who opens
connections while a job waits: after a start, and after a pause, when idle ones were dropped.

Names in results files, scenario "distance":
    targets   ours, stock ... (benchmarks/targets)
    points    "start", "in turn", "after a pause"
    metrics   first_answer_s (exec to the answer of a job that was waiting), p50_ms (submitted to answered)
At least one round trip is in each: the job travels one half, its result the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from benchmarks import arguments
from benchmarks.clients import Answers, Clients, embed_jobs
from benchmarks.emulator import JobRecord, Status
from benchmarks.in_turn import Points, in_turn, prepared
from benchmarks.measure import MISSING, markdown, percentile
from benchmarks.report.targets import name as target_name
from benchmarks.results_file import Results, environment, write
from benchmarks.rounds import measurements, median_ratio, spread
from benchmarks.targets.catalogue import NAMES, Needs, targets
from benchmarks.targets.queue_worker import QueueWorker
from benchmarks.worker_process import WorkerProcess, watched
from benchmarks.workload import stream
from engine.config import ENGINES

SCENARIO = "distance"
START, IN_TURN, PAUSED = "start", "in turn", "after a pause"
_PEERS = ("stock", "infinity", "none")
_WARM_UP_JOBS, _BETWEEN_S = 5, 0.3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--rtt-ms", type=arguments.positive, default=40.0, help="there and back (default: %(default)g ms)"
    )
    arguments.add_rounds(parser, 3, "starts of each")
    parser.add_argument("--jobs", type=arguments.count, default=20, help="in turn (default: %(default)s)")
    parser.add_argument(
        "--pause", type=arguments.seconds, default=20.0, help="s before a job (default: %(default)g; aiohttp keeps 15)"
    )
    parser.add_argument("--with", dest="peer", choices=_PEERS, default="stock", help="beside ours (default: stock)")
    arguments.add_bundle(parser, arguments.TEXTS)
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="our worker's ENGINE (default: %(default)s)")
    parser.add_argument("--json", type=arguments.new_file, help="also write the figures to this file")


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON. A peer that fails in a round has no figure there."""
    if args.bundle and args.peer != "none":
        raise ValueError(f"{args.peer} would load all-MiniLM-L6-v2 beside this --bundle; add --with none")
    needs = Needs(bundle=args.bundle, engine=args.engine, concurrency=1)
    found = []
    for target in targets(["ours", args.peer], needs):
        assert isinstance(target, QueueWorker)
        found.append(target)
    found, versions = prepared(found, ("ours",))
    known = environment()  # now: a file that is changed meanwhile is not what runs

    def measured(target: QueueWorker, number: int) -> Points:
        return measure(target, args.rtt_ms / 1e3, args.jobs, args.pause, seed=number)

    rounds = in_turn(found, args.rounds, measured, ("ours",))
    options = {name: getattr(args, name) for name in ("rtt_ms", "rounds", "jobs", "pause", "engine")}
    results = Results(
        {**known, "targets": versions},
        options,
        measurements(
            SCENARIO, rounds, lambda target, point, metric: None if target == "ours" else ("ours", point, metric)
        ),
    )
    print(table(results, args.rtt_ms, args.pause))
    if args.json:
        write(args.json, results)
    return 0


def measure(target: QueueWorker, rtt_s: float, jobs: int, pause_s: float, *, seed: int = 0) -> Points:
    """One start of `target`, `rtt_s` seconds from its endpoint. Raises RuntimeError when a job fails."""
    payloads = embed_jobs(stream(seed=seed))
    command, env = target.how()
    with Clients(rtt_s) as clients:
        waiting = clients.emulator.submit(next(payloads))
        with WorkerProcess(clients.emulator, command, env) as worker:

            def ask() -> tuple[JobRecord, Answers, Answers]:
                first = clients.emulator.wait(waiting)
                if first.status is not Status.COMPLETED:
                    raise RuntimeError(f"{target.name}: the first job failed: {first.error}")
                clients.one_by_one(_WARM_UP_JOBS, payloads)
                in_turn = clients.one_by_one(jobs, payloads, pause_s=_BETWEEN_S)
                return first, in_turn, clients.one_by_one(1, payloads, pause_s=pause_s)

            first, in_turn, paused = watched([worker], ask)
            worker.stop()
    if errors := in_turn.errors + paused.errors:
        raise RuntimeError(f"{target.name}: {len(errors)} jobs failed: {errors[0]}")
    assert first.done is not None
    return {
        START: {"first_answer_s": first.done - worker.started},
        IN_TURN: {"p50_ms": percentile(in_turn.ms, 50)},
        PAUSED: {"p50_ms": percentile(paused.ms, 50)},
    }


def table(results: Results, rtt_ms: float, pause_s: float) -> str:
    """A line a point, a column a target: median, least and greatest, and how many times ours. Markdown."""
    found = results.of(SCENARIO)
    names = [name for name in NAMES if any(one.target == name for one in found)]
    what: Mapping[tuple[str, str], str] = {
        (START, "first_answer_s"): "exec to the answer of a waiting job, s",
        (IN_TURN, "p50_ms"): "job after job, p50, ms",
        (PAUSED, "p50_ms"): f"a job after {pause_s:g} s of none, ms",
    }
    rows: list[Sequence[str]] = []
    for (point, metric), label in what.items():
        cells = []
        for name in names:
            one = results.find((SCENARIO, name, point, metric))
            behind = f" {median_ratio(results, one)}" if one and results.ratios(one) else ""
            cells.append(spread(one) + behind if one else MISSING)
        rows.append([label, *cells])
    return markdown([f"round trip {rtt_ms:g} ms, TLS", *(target_name(name) for name in names)], rows)
