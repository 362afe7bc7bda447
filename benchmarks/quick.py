"""A few minutes of every scenario that can tell a regression, held against budgets and, if given, an earlier run.

Nothing here is judged by absolute times: what is timed is compared with a floor that ran in the same rounds, and the
rest are counts. The parts:
    load        the engine that this machine has: idle, 1 client, 32 clients, bulk; beside the floor
    load-fake   all but the engine: idle, 1 client, 32 clients; beside a worker that does nothing
    coldstart   starts with a warm page cache; beside the floor
    batching    padding and engine runs, counted
    soak        memory, files and threads over some thousand jobs
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks import arguments, budgets, compare
from benchmarks.exported import demo_bundle
from benchmarks.measure import figure
from benchmarks.results_file import Results, read, write
from benchmarks.rounds import merged, target_of

RESULTS = Path("benchmarks/results/quick-cpu.json")
PARTS = ("load", "load-fake", "coldstart", "batching", "soak")
_FAKE, _OF_FAKE = target_of("fake"), ("load-fake", "soak")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these (default: all)")
    arguments.add_bundle(parser, arguments.EMBEDDING)
    arguments.add_rounds(parser, 5, "of every part")
    parser.add_argument(
        "--seconds", type=arguments.seconds, default=1.5, help="length of each loop (default: %(default)s)"
    )
    parser.add_argument(
        "--clients", type=arguments.count, nargs="+", default=[1, 32], help="closed loops (default: 1 32)"
    )
    parser.add_argument(
        "--idle-jobs",
        type=arguments.count_or_none,
        default=20,
        help="jobs that find an idle worker (default: %(default)s)",
    )
    parser.add_argument(
        "--bulk-rows", type=arguments.count, default=200, help="texts of the bulk job (default: %(default)s)"
    )
    parser.add_argument(
        "--soak-jobs", type=arguments.count, default=10_000, help="jobs of the soak (default: %(default)s)"
    )
    parser.add_argument(
        "--budgets",
        type=Path,
        default=budgets.BUDGETS,
        help="the limits (default: benchmarks/budgets.toml)",
    )
    parser.add_argument("--baseline", type=Path, help="also compare with the results of an earlier quick run")
    compare.add_compare_arguments(parser)
    parser.add_argument("--json", type=arguments.new_file, help="also write the results to this file")


def main(args: argparse.Namespace) -> int:
    """Measure, print what moved. Returns 1 when a budget is exceeded, a job failed or something got worse.

    Raises OSError or ValueError when budgets or baseline cannot be read, or have nothing to do with what was measured.
    """
    limits, baseline = _limits(args), _baseline(args)
    args.bundle = args.bundle or demo_bundle()
    begin = time.monotonic()
    results = measure(args)
    if args.json:
        write(args.json, results)
    print(f"measured in {figure(time.monotonic() - begin)} s\n")
    outcomes = budgets.check(results, limits)
    print(budgets.table(outcomes))
    wrong = [*budgets.complaints(outcomes), *failures(results)]
    if wrong or outcomes:
        print("\n".join(["", *wrong]) if wrong else f"\nall of {len(outcomes)} budgets kept, and no job failed")
    worse = baseline is not None and _is_worse(baseline, results, args)
    if not outcomes:  # as the limits of ours-int8 beside a worker of another precision, which is seen when it runs
        ours = (one for one in results.measurements if one.target.startswith("ours"))
        ran = ", ".join(dict.fromkeys(f"{one.scenario} of {one.target}" for one in ours))
        print(f"quick: {args.budgets} has no limit for {ran}; name a file that has, with --budgets", file=sys.stderr)
    return int(bool(wrong) or worse) or 2 * (not outcomes)


def _limits(args: argparse.Namespace) -> list[budgets.Budget]:
    """Raises ValueError, before minutes are spent, when none of them is of what is measured."""
    found = budgets.read(args.budgets)
    if not _measured(args) & {_kind(one.scenario, one.target) for one in found}:
        raise ValueError(f"{args.budgets} has no limit for what the parts {', '.join(args.parts)} measure")
    return found


def _baseline(args: argparse.Namespace) -> Results | None:
    """Raises ValueError before minutes are spent on what it has nothing to say about."""
    if args.baseline is None:
        return None
    found = read(args.baseline)
    ours = {_kind(one.scenario, one.target) for one in found.measurements if one.target.startswith("ours")}
    if not _measured(args) & ours:
        raise ValueError(f"{args.baseline} holds nothing that the parts {', '.join(args.parts)} measure")
    return found


def _measured(args: argparse.Namespace) -> set[tuple[str, bool]]:
    return {(part.partition("-")[0], part in _OF_FAKE) for part in args.parts}


def _kind(scenario: str, target: str) -> tuple[str, bool]:
    """As `_measured` has them: `load` and `load-fake` are one scenario, of another target each."""
    return scenario, target.startswith(_FAKE)


def _is_worse(baseline: Results, results: Results, args: argparse.Namespace) -> bool:
    findings = compare.compare(baseline, results, confidence=args.confidence, effect=args.effect)
    print()
    print(compare.report(baseline, results, findings, confidence=args.confidence, effect=args.effect))
    return any(one.verdict == compare.WORSE for one in findings)


def measure(args: argparse.Namespace) -> Results:
    """All parts, one after the other, as one file's results."""
    return merged({part: _part(part, args) for part in args.parts})


def failures(results: Results) -> list[str]:
    """A sentence for each part in which jobs failed, or of which the soak says what is wrong: no figure shows either.

    `results` are of `measure`: details by part.
    """
    found = []
    for part, details in results.details.items():
        counts = [one for one in details.get("counts", []) if any(one["errors"])]
        what = [f"{sum(one['errors'])} jobs failed at {one['target']}, {one['point']}" for one in counts]
        if what := [*what, *details.get("complaints", [])]:
            found.append(f"FAILED {part}: {'; '.join(what)}")
    return found


def _part(part: str, args: argparse.Namespace) -> Results:
    loops = [
        "--clients",
        *args.clients,
        "--seconds",
        args.seconds,
        "--idle-jobs",
        args.idle_jobs,
        "--rounds",
        args.rounds,
    ]
    options: dict[str, Sequence[object]] = {
        "load": [*loops, "--rates", "--bulk-rows", args.bulk_rows, "--floor-rows", 100],
        "load-fake": [*loops, "--rates", "--bulk-rows", 0, "--engine", "fake"],
        "coldstart": ["--runs", args.rounds, "--warm-only"],
        "batching": ["--bulk-rows", args.bulk_rows, "--seconds", args.seconds, "--rounds", args.rounds],
        "soak": ["--jobs", args.soak_jobs, "--warm-up", max(500, args.soak_jobs // 5), "--engine", "fake"],
    }
    module = import_module(f"benchmarks.{part.partition('-')[0]}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    arguments = [str(one) for one in [*options[part], "--bundle", args.bundle]]
    found: Results = module.measure(parser.parse_args(arguments))
    return found


def budgets_table() -> str:
    """The committed budgets, beside the committed results."""
    return budgets.reasons(budgets.check(read(RESULTS), budgets.read()))
