"""This worker beside the ones that users would run instead: same texts, same machine, in turn, in one run.

The floor, onnxruntime and tokenizers alone, runs beside them in the same rounds. Only the ratios of one round count:
machines are shared and noisy. docs/peers.md says what each target is and what is fair about it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import arguments, results_file
from benchmarks.clients import Answers
from benchmarks.in_turn import Points, in_turn, prepared
from benchmarks.measure import say
from benchmarks.peers_table import table
from benchmarks.results_file import Measurement, Results
from benchmarks.rounds import Round, measurements
from benchmarks.targets.base import STOP_TIMEOUT_S, Running, Target
from benchmarks.targets.catalogue import ALWAYS, PEERS, Needs, targets
from benchmarks.workload import texts
from engine.config import ENGINES

__all__ = ["add_arguments", "main", "table"]

CLIENTS = 32
SCENARIO = "peers"
# Many clients are held against what the floor gets from batches, as a worker that batches may come near it.
_FLOORS = {(f"{CLIENTS} clients", "jobs_per_s"): ("bulk", "rows_per_s")}
_NO_FLOOR = {(f"{CLIENTS} clients", "p50_ms"), (f"{CLIENTS} clients", "p99_ms"), ("stop", "sigterm_to_exit_s")}
_PROBES = texts(8, seed=7)
_LEAST_COSINE = 0.98  # what the export asks of int8; every other target is at 1 within rounding
_IDLE_PAUSE_S = 0.1


@dataclass(frozen=True)
class Load:
    """What every target is asked in every round."""

    seconds: float
    idle_jobs: int
    bulk_rows: int
    stop_timeout_s: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    arguments.add_rounds(parser, 3)
    parser.add_argument(
        "--seconds", type=arguments.seconds, default=8.0, help="length of each loop (default: %(default)s)"
    )
    parser.add_argument(
        "--idle-jobs", type=arguments.count, default=20, help="jobs that find it idle (default: %(default)s)"
    )
    parser.add_argument(
        "--bulk-rows", type=arguments.count, default=1000, help="texts of the bulk job (default: %(default)s)"
    )
    parser.add_argument(
        "--stop-timeout",
        type=arguments.seconds,
        default=STOP_TIMEOUT_S,
        help="s until it is killed (default: %(default)g)",
    )
    parser.add_argument(
        "--concurrency",
        type=arguments.count,
        default=32,
        help="jobs that a worker takes at once (default: %(default)s)",
    )
    add_targets(parser, "stock")
    parser.add_argument(
        "--tei", type=arguments.address, metavar="URL", help="also ask the Text Embeddings Inference that serves here"
    )
    parser.add_argument(
        "--triton", type=arguments.address, metavar="URL", help="also ask the Triton that serves our graph here"
    )
    parser.add_argument("--triton-model", default="model", metavar="NAME", help="its name there (default: %(default)s)")
    parser.add_argument("--json", type=arguments.new_file, help="also write the figures to this file")
    parser.add_argument(
        "--append", action="store_true", help="add these rounds to those in --json, of the same options"
    )


def add_targets(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare the options that say who is measured, and with which model."""
    parser.add_argument(
        "--with",
        dest="peers",
        type=names_of,
        default=default,
        metavar="PEERS",
        help=f"all, none, or of {','.join(PEERS)} (default: {default}); some get an environment of their own, made at "
        "need",
    )
    parser.add_argument(
        "--model", type=arguments.folder, metavar="FOLDER", help="what the peers load (default: all-MiniLM-L6-v2)"
    )
    arguments.add_bundle(parser, arguments.EMBEDDING, "the same model's bundle")
    parser.add_argument("--bundle-int8", type=arguments.bundle_for(arguments.EMBEDDING), help="the same for ours-int8")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="our worker's ENGINE (default: %(default)s)")


def names_of(text: str) -> list[str]:
    """Names of peers with commas between, or "all". Raises ArgumentTypeError."""
    if text in ("all", "none"):
        return list(PEERS) if text == "all" else []
    names = text.split(",")
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"there is no peer {unknown[0]!r}; choose from {', '.join(PEERS)}, all, none")
    return names


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON. A peer that cannot be had is left out, with its reason."""
    before = _before(args)
    needs = Needs(
        model=args.model,
        bundle=args.bundle,
        bundle_int8=args.bundle_int8,
        concurrency=args.concurrency,
        engine=args.engine,
        tei=args.tei,
        triton=args.triton,
        triton_model=args.triton_model,
    )
    urls = [name for name in ("tei", "triton") if getattr(args, name)]
    for name in {"tei", "triton"} - set(urls):
        say(f"{name} is left out: give the address of one with --{name} URL (docs/peers.md)")
    found, versions = prepared(targets([*ALWAYS, *args.peers, *urls], needs), ALWAYS)
    load = Load(args.seconds, args.idle_jobs, args.bulk_rows, args.stop_timeout)
    options = {**vars(load), "concurrency": args.concurrency, "engine": args.engine, "clients": CLIENTS}
    environment = {**results_file.environment(), "targets": versions}

    def results_of(rounds: Sequence[Round]) -> Results:
        ways = {"ways": {target.name: target.way for target in found}}
        results = Results(environment, options, measurements(SCENARIO, rounds, floor_of), ways)
        return results if before is None else joined(before, results)

    def keep(rounds: Sequence[Round]) -> None:
        if args.json:  # after every round: a run that is cut short leaves what it had
            results_file.write(args.json, results_of(rounds))

    results_of([])  # raises ValueError where they cannot be joined, before minutes are spent
    reference: list[Any] = []  # the floor's vectors: all targets must answer the same

    def measure(target: Target, number: int) -> Points:
        return _measure(target, load, reference)

    print(table(results_of(in_turn(found, args.rounds, measure, ALWAYS, keep))))
    return 0


def _before(args: argparse.Namespace) -> Results | None:
    """What is added to. Raises OSError, or ValueError, also for options that do not go together."""
    if bool(args.model) != bool(args.bundle):
        raise ValueError("--model and --bundle go together, for both must be of one model")
    if args.append and not args.json:
        raise ValueError("--append needs --json, the file to add to")
    return results_file.read(args.json) if args.append and args.json.exists() else None


def _measure(target: Target, load: Load, reference: list[Any]) -> Points:
    """One start of one target: its first answer, idle, one client, many, bulk, memory, stop."""
    found: Points = {}
    with target.start(_PROBES[0]) as running:
        if running.ready_s is not None and running.first_answer_s is not None:
            found["cold start"] = {"ready_s": running.ready_s, "first_answer_s": running.first_answer_s}
        vectors = running.embed(_PROBES)
        if not reference:
            reference.append(vectors)
        cosine = least_cosine(vectors, reference[0])
        if cosine < _LEAST_COSINE:
            raise RuntimeError(f"its vectors are not the floor's: a cosine of {cosine:.4f}; it runs another model")
        found["answers"] = {"min_cosine": cosine}
        idle = _checked(running.one_by_one(texts(load.idle_jobs), _IDLE_PAUSE_S))
        found["idle"] = {"p50_ms": idle["p50_ms"]}
        for clients in (1, CLIENTS):
            answers = running.closed_loop(clients, load.seconds)
            if answers is not None:
                point, summary = "1 client" if clients == 1 else f"{clients} clients", _checked(answers)
                found[point] = {metric: summary[metric] for metric in ("jobs_per_s", "p50_ms", "p99_ms")}
        found["bulk"] = {"rows_per_s": _bulk(running, texts(load.bulk_rows))}
        found["memory"] = running.memory_mb()
        if running.started is not None:
            took = running.stop(load.stop_timeout_s)
            found["stop"] = {"sigterm_to_exit_s": math.nan if took is None else took}
    return found


def _bulk(running: Running, many: Sequence[str]) -> float:
    begin = time.perf_counter()
    found = running.embed(many)
    seconds = time.perf_counter() - begin
    if len(found) != len(many):
        raise RuntimeError(f"{len(many)} texts brought {len(found)} vectors")
    return len(many) / seconds


def _checked(answers: Answers) -> dict[str, float]:
    if answers.errors:
        raise RuntimeError(f"{len(answers.errors)} jobs failed: {answers.errors[0]}")
    return answers.summary()


def least_cosine(vectors: Any, reference: Any) -> float:
    """The smallest cosine between vectors of the same text; two arrays of (texts, dimensions)."""
    import numpy as np

    if vectors.shape != reference.shape:
        raise RuntimeError(f"its vectors have the shape {vectors.shape}, the floor's {reference.shape}")
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    return float(((vectors * reference).sum(1) / lengths).min())


def floor_of(target: str, point: str, metric: str) -> tuple[str, str, str] | None:
    """What a figure is measured against."""
    if target == "floor" or (point, metric) in _NO_FLOOR:
        return None
    return "floor", *_FLOORS.get((point, metric), (point, metric))


def joined(before: Results, after: Results) -> Results:
    """The rounds of `before` and then those of `after`, which may be of other targets.

    Raises ValueError when they were told different things, are of another machine, or a target is of another version.
    """
    if dict(before.options) != dict(after.options):
        raise ValueError(f"the file's rounds were measured with {dict(before.options)}; give the same, or another file")
    if moved := list(_moved(before.environment, after.environment)):
        raise ValueError(f"the file's rounds are of another machine ({'; '.join(moved)}); measure into another file")
    versions = {**before.environment.get("targets", {}), **after.environment["targets"]}
    for name, found in before.environment.get("targets", {}).items():
        if versions[name] != found:
            both = f"{dict(found)}, now {dict(versions[name])}"
            raise ValueError(f"the file's rounds are of another version of {name} ({both}); measure into another file")
    first, second = (max((len(one.repeats) for one in each.measurements), default=0) for each in (before, after))
    merged = {}
    for one in (*before.measurements, *after.measurements):
        earlier, later = before.find(one.key), after.find(one.key)
        repeats = (earlier.repeats if earlier else (None,) * first) + (later.repeats if later else (None,) * second)
        merged[one.key] = Measurement(**{**vars(one), "repeats": repeats})
    ways = {**before.details.get("ways", {}), **after.details["ways"]}
    return Results({**after.environment, "targets": versions}, after.options, tuple(merged.values()), {"ways": ways})


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[str]:
    """What both environments tell of the machine and its packages, and tell differently."""
    for name in before.keys() & after.keys() - {"date", "commit", "targets"}:
        old, new = before[name], after[name]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _moved(old, new)
        elif old != new:
            yield f"{name} {old}, now {new}"
