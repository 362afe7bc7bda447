"""One started worker under load: clients that wait for their answer, clients that do not, idle and bulk jobs.

The floor, onnxruntime and tokenizers alone on the same texts, runs in the same rounds. Only the ratios of one run
count: machines are shared and noisy, and emulator and clients use the worker's cores.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.clients import Answers, Clients, Json, embed_jobs
from benchmarks.exported import BUILD, exported
from benchmarks.floor import BATCH, Floor
from benchmarks.measure import MISSING, figure, markdown, medians, percentile, ratio, write_json
from benchmarks.weights import minilm_folder
from benchmarks.worker_process import WorkerProcess
from benchmarks.workload import arrivals, stream, texts

Figures = dict[str, float]
Round = dict[str, Figures]
"""Name of a measurement -> its figures."""

IDLE = "idle worker"
BULK = "bulk, one job"
FLOOR_SINGLE = "floor: one by one"
FLOOR_IDLE = "floor: one by one, idle"
FLOOR_BATCHES = f"floor: sorted, batches of {BATCH}"
FLOOR_EQUAL = "floor: sorted, equal lengths"

_WARM_UP_JOBS = 50
_PAUSE_S = 0.05  # before each idle job: far longer than a scheduler needs to become idle
_FLOOR_ROWS = 200  # texts that the floor embeds one by one
_BULK_TIMEOUT_S = 600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32], help="closed loops (default: 1 8 32)")
    parser.add_argument(
        "--rates",
        nargs="*",
        default=["50%", "80%"],
        metavar="RATE",
        help="open loops, in jobs/s or in %% of the best closed loop (default: 50%% 80%%)",
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each loop (default: %(default)s)")
    parser.add_argument("--idle-jobs", type=int, default=100, help="jobs that find an idle worker (%(default)s)")
    parser.add_argument("--bulk-rows", type=int, default=2000, help="texts of the bulk job (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="times that all is measured (default: %(default)s)")
    parser.add_argument("--engine", default="auto", help="the worker's ENGINE; fake: the scheduler alone (auto)")
    parser.add_argument("--bundle", type=Path, help="a bundle to serve (default: all-MiniLM-L6-v2, exported)")
    parser.add_argument("--seed", type=int, default=0, help="of texts and arrivals (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON. Returns 1 when a job failed, 2 for options that do not go together."""
    if not args.clients and any(rate.endswith("%") for rate in args.rates):
        print("load: a rate in % is one of the best closed loop; name --clients, or --rates in jobs/s", file=sys.stderr)
        return 2
    bundle = args.bundle or exported(minilm_folder(), BUILD / "demo" / "bundle")
    floor = None if args.engine == "fake" else Floor(bundle)
    rounds: list[Round] = []
    with Clients() as clients, WorkerProcess.ours(clients.emulator, bundle, env={"ENGINE": args.engine}) as worker:
        clients.one_by_one(_WARM_UP_JOBS, embed_jobs(stream(seed=args.seed)))
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
            rounds.append(_load(clients, args) | (_floor(floor, args) if floor is not None else {}))
        worker.stop()
    print(table(rounds))
    if args.json:
        write_json(args.json, {"engine": args.engine, "rounds": rounds})
    return 1 if any(figures.get("errors") for found in rounds for figures in found.values()) else 0


def _load(clients: Clients, args: argparse.Namespace) -> Round:
    """Every load once, each on the same texts again."""

    def jobs() -> Iterator[Json]:
        return embed_jobs(stream(seed=args.seed))

    found: Round = {}
    if args.idle_jobs:
        found[IDLE] = _figures(IDLE, clients.one_by_one(args.idle_jobs, jobs(), pause_s=_PAUSE_S))
        del found[IDLE]["jobs_per_s"]  # it says how long we paused
    for count in args.clients:
        name = closed_loop(count)
        found[name] = _figures(name, clients.closed_loop(count, args.seconds, jobs()))
    best = max((found[closed_loop(count)]["jobs_per_s"] for count in args.clients), default=0.0)
    for rate in args.rates:
        name = f"open loop, {rate}" if rate.endswith("%") else f"open loop, {rate} jobs/s"
        per_second = best * float(rate[:-1]) / 100 if rate.endswith("%") else float(rate)
        due = arrivals(per_second, args.seconds, seed=args.seed)
        found[name] = _figures(name, clients.open_loop(due, jobs()))
    if args.bulk_rows:
        # In base64: as JSON numbers the vectors of 2,000 texts are 17 MB, and the platform takes 20 MB at most.
        payload = {"texts": texts(args.bulk_rows, seed=args.seed), "encoding_format": "base64"}
        answers = clients.one_by_one(1, iter([payload]), timeout_s=_BULK_TIMEOUT_S)
        found[BULK] = _figures(BULK, answers)
        found[BULK]["jobs_per_s"] = args.bulk_rows / max(answers.ms, default=math.inf) * 1e3
    return found


def closed_loop(clients: int) -> str:
    """What a closed loop of `clients` is called in the results."""
    return f"{clients} client{'s' if clients > 1 else ''}"


def _figures(name: str, answers: Answers) -> Figures:
    for error in sorted(set(answers.errors))[:3]:
        print(f"{name}: {answers.errors.count(error)} jobs failed: {error}", file=sys.stderr)
    return answers.summary()


def _floor(floor: Floor, args: argparse.Namespace) -> Round:
    """The floor on texts that the worker gets."""
    single = floor.one_by_one(texts(_FLOOR_ROWS, seed=args.seed))
    bulk = texts(args.bulk_rows or _FLOOR_ROWS, seed=args.seed)
    idle = floor.one_by_one(texts(args.idle_jobs, seed=args.seed), pause_s=_PAUSE_S)
    return {
        FLOOR_SINGLE: {"jobs_per_s": 1e3 / statistics.mean(single), **_percentiles(single)},
        FLOOR_IDLE: _percentiles(idle),
        FLOOR_BATCHES: {"jobs_per_s": floor.in_batches(bulk)},
        FLOOR_EQUAL: {"jobs_per_s": floor.in_equal_lengths(bulk)},
    }


def _percentiles(ms: Sequence[float]) -> Figures:
    found = {f"p{percent}_ms": percentile(ms, percent) for percent in (50, 90, 99)}
    return {**found, "max_ms": max(ms, default=math.nan)}


def table(rounds: Sequence[Round]) -> str:
    """The medians of all rounds, as Markdown, with what each load is measured against in the last column."""
    found = {name: medians([figures[name] for figures in rounds]) for name in rounds[0]}
    columns = ("jobs", "jobs_per_s", "p50_ms", "p90_ms", "p99_ms", "max_ms", "errors")
    rows = [
        [name, *(figure(figures.get(column)) for column in columns), _of_the_floor(name, found)]
        for name, figures in found.items()
    ]
    lines = [
        markdown(("", "jobs", "rows/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "errors", "of the floor"), rows),
        "",
        "A job is one text, but for bulk. Open loops: % of the best closed loop; timed from the planned arrival.",
    ]
    if FLOOR_SINGLE in found:
        lines.append(
            "Of the floor: idle by p50; 1 client of one by one, more clients of the sorted batches, bulk of what is "
            "faster of these and of equal lengths."
        )
    return "\n".join(lines)


def _of_the_floor(name: str, found: Mapping[str, Mapping[str, float | None]]) -> str:
    """How near `name` comes to what it is measured against: 100% is all of the floor's speed."""
    if name == IDLE:
        share = ratio(found.get(FLOOR_IDLE, {}).get("p50_ms"), found[name]["p50_ms"])
    elif name == closed_loop(1):
        share = _rate_ratio(name, found, FLOOR_SINGLE)
    elif name.endswith("clients"):
        share = _rate_ratio(name, found, FLOOR_BATCHES)
    elif name == BULK:
        share = _rate_ratio(name, found, FLOOR_BATCHES, FLOOR_EQUAL)
    else:
        return MISSING
    return MISSING if math.isnan(share) else f"{share:.0%}"


def _rate_ratio(name: str, found: Mapping[str, Mapping[str, float | None]], *floors: str) -> float:
    rates = [rate for floor in floors if (rate := found.get(floor, {}).get("jobs_per_s"))]
    return ratio(found[name]["jobs_per_s"], max(rates, default=None))
