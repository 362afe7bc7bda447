"""What batches the texts are put in: padding and engine runs, counted by the worker; counts need no quiet machine.

Names in results files, scenario "batching":
    targets   ours, ours-fake ...
    points    "bulk" (one job of many texts: its batches are the same every time), "32 clients" (closed loop)
    metrics   padding (tokens computed as a multiple of those of the texts themselves), runs_per_row
    details   counts: jobs and errors of each round
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from benchmarks import arguments
from benchmarks.clients import Answers, Clients, Json, embed_jobs
from benchmarks.engines import identity, served_precision
from benchmarks.exported import demo_bundle
from benchmarks.load import closed_loop
from benchmarks.measure import figure, markdown, say
from benchmarks.results_file import Results, environment, write
from benchmarks.rounds import Figures, Round, measurements, options_of, spread, target_of
from benchmarks.worker_process import WorkerProcess, watched
from benchmarks.workload import stream, texts
from engine.config import ENGINES

SCENARIO = "batching"
_CLIENTS = 32
_WAIT_S = 600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--bulk-rows", type=arguments.count, default=500, help="texts of the bulk job (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=arguments.seconds, default=2.0, help="length of the closed loop (default: %(default)s)"
    )
    arguments.add_rounds(parser, 3, "times that all is counted")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="the worker's ENGINE (default: %(default)s)")
    arguments.add_bundle(parser, arguments.EMBEDDING)
    parser.add_argument("--json", type=arguments.new_file, help="also write the results to this file")


def main(args: argparse.Namespace) -> int:
    """Count, print the table, write the JSON. Returns 1 when a job failed."""
    args.bundle = args.bundle or demo_bundle()
    results = measure(args)
    print(table(results))
    if args.json:
        write(args.json, results)
    return int(any(sum(found["errors"]) for found in results.details["counts"]))


def measure(args: argparse.Namespace) -> Results:
    """The counts of every round. Raises RuntimeError when the worker does not start, or an answer does not come."""
    known, env = environment(), {"ENGINE": args.engine}  # now: a file that is changed meanwhile is not what runs
    with Clients() as clients, WorkerProcess.ours(clients.emulator, args.bundle, env=env) as worker:
        target = target_of(args.engine, served_precision(args.bundle, {**os.environ, **env}))
        rounds, counts = watched([worker], lambda: _rounds(clients, target, args))
        worker.stop()
    options = {**options_of(vars(args)), **identity(args.bundle)}
    return Results(known, options, measurements(SCENARIO, rounds), {"counts": counts})


def _rounds(clients: Clients, target: str, args: argparse.Namespace) -> tuple[list[Round], list[Json]]:
    """What every round found, and its counts."""
    payload = {"texts": texts(args.bulk_rows), "encoding_format": "base64"}
    many = closed_loop(_CLIENTS)
    rounds: list[Round] = []
    counts: dict[str, list[Answers]] = {"bulk": [], many: []}
    for number in range(args.rounds):
        say(f"batching, round {number + 1} of {args.rounds}")
        start = _health(clients)
        counts["bulk"].append(clients.one_by_one(1, iter([payload]), timeout_s=_WAIT_S))
        between = _health(clients)
        counts[many].append(clients.closed_loop(_CLIENTS, args.seconds, embed_jobs(stream())))
        end = _health(clients)
        rounds.append({(target, "bulk"): _figures(start, between), (target, many): _figures(between, end)})
        for point, answers in counts.items():
            for error in sorted(set(answers[-1].errors))[:1]:
                say(f"{point}: {len(answers[-1].errors)} jobs failed: {error}")
    return rounds, [_counts(target, point, found) for point, found in counts.items()]


def _counts(target: str, point: str, rounds: Sequence[Answers]) -> Json:
    """As `load` has them."""
    jobs, errors = [len(one.ms) for one in rounds], [len(one.errors) for one in rounds]
    return {"target": target, "point": point, "jobs": jobs, "errors": errors}


def _health(clients: Clients) -> Json:
    health: Json = clients.emulator.wait(clients.emulator.submit({"health": True}), _WAIT_S).output
    return health


def _figures(before: Json, after: Json) -> Figures:
    rows, runs, wanted, computed = (
        after[name] - before[name] for name in ("rows_served", "batches_run", "tokens_served", "tokens_computed")
    )
    return {"padding": computed / wanted, "runs_per_row": runs / rows} if rows else {}


def table(results: Results) -> str:
    """Medians with the range of the rounds, as Markdown."""
    rows = []
    for target, point in dict.fromkeys((one.target, one.point) for one in results.of(SCENARIO)):
        found = [results.find((SCENARIO, target, point, metric)) for metric in ("padding", "runs_per_row")]
        rows.append([f"{target}, {point}", *(spread(one) if one else figure(None) for one in found)])
    return markdown(("", "tokens computed / tokens of the texts", "engine runs a text"), rows)
