"""What every target holds: after its start, after its first answer, and after many jobs.

RSS is added up over a target's processes and counts shared pages again, PSS does not. On a GPU also the device's
memory, as nvidia-smi tells it by process, which was not tried yet.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable

import psutil

from benchmarks import arguments, results_file
from benchmarks.in_turn import Points, in_turn, prepared
from benchmarks.measure import MISSING, figure, markdown, ratio, times
from benchmarks.peers import add_targets
from benchmarks.report.targets import name as target_name
from benchmarks.results_file import Results
from benchmarks.rounds import Figures, measurements
from benchmarks.targets.base import Running, Target
from benchmarks.targets.catalogue import ALWAYS, NAMES, Needs, targets
from benchmarks.workload import stream, texts
from engine.probe import gpu

SCENARIO = "memory"
BOOT, FIRST = "after boot", "after the first answer"
_PART = 32  # texts of a job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--jobs", type=arguments.count, default=300, help="of one text (default: %(default)s)")
    arguments.add_rounds(parser, 3, "starts of every target")
    add_targets(parser, "ours-int8,stock")
    parser.add_argument("--json", type=arguments.new_file, help="also write the figures to this file")


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON. A peer that cannot be had is left out, with its reason."""
    peers = args.peers if args.engine != "fake" else []
    if bool(args.model) != bool(args.bundle) and (peers or args.model):
        raise ValueError(
            "--model and --bundle go together, for both must be of one model; a --bundle alone, --with none"
        )
    needs = Needs(args.model, args.bundle, args.bundle_int8, engine=args.engine)
    names = [*ALWAYS, *peers] if args.engine != "fake" else ["ours"]
    found, versions = prepared(targets(names, needs), ALWAYS)
    environment = {**results_file.environment(), "targets": versions}
    rounds = in_turn(found, args.rounds, lambda target, number: measure(target, args.jobs), ALWAYS)
    options = {"jobs": args.jobs, "rounds": args.rounds, "engine": args.engine}
    results = Results(environment, options, measurements(SCENARIO, rounds, floor_of))
    print(table(results))
    if args.json:
        results_file.write(args.json, results)
    return 0


def measure(target: Target, jobs: int) -> Points:
    """Memory at each point: half of the texts come in jobs of one, the first of them alone, and half in jobs of 32."""
    with target.start() as running:
        found = {BOOT: _held(running)}
        running.embed(texts(1))
        found[FIRST] = _held(running)
        single = stream(seed=3)
        answers = running.one_by_one([next(single) for _ in range(jobs - jobs // 2 - 1)], 0.0)
        if answers.errors:
            raise RuntimeError(f"{len(answers.errors)} jobs failed: {answers.errors[0]}")
        for number, begin in enumerate(range(0, jobs // 2, _PART)):
            running.embed(texts(min(_PART, jobs // 2 - begin), seed=number))
        found[after(jobs)] = _held(running)
    return found


def floor_of(target: str, point: str, metric: str) -> tuple[str, str, str] | None:
    """The floor's at the same point."""
    return None if target == "floor" else ("floor", point, metric)


def after(jobs: int) -> str:
    """What the last point is called."""
    return f"after {jobs} texts"


def _held(running: Running) -> Figures:
    found = dict(running.memory_mb())
    if running.pid is not None and (device := device_mb(running.pid)) is not None:
        found["device_mb"] = device
    return found


def device_mb(pid: int, ask: Callable[[], str | None] | None = None) -> float | None:
    """The device's memory that the process and its children hold, in MB.

    None without a GPU, and where the driver does not tell of these processes: in a container it may see none, or say
    "[N/A]".
    """
    said = (ask or _nvidia_smi)()
    if said is None:
        return None
    main = psutil.Process(pid)
    tree = {main.pid, *(child.pid for child in main.children(recursive=True))}
    rows = (line.split(",") for line in said.splitlines() if line.strip())
    try:
        held = [float(mib) * 1.048576 for found, mib in rows if int(found) in tree]
    except ValueError:
        return None
    return sum(held) if held else None


def _nvidia_smi() -> str | None:
    if gpu() is None:
        return None
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None  # a container without it


def table(results: Results) -> str:
    """RSS and PSS at every point, a line a target; behind it how many times ours it is. Markdown."""
    found = results.of(SCENARIO)
    columns = list(dict.fromkeys((one.point, one.metric) for one in found))
    header = ["MB", *(f"{metric.removesuffix('_mb').upper()} {point}" for point, metric in columns)]
    names = [name for name in NAMES if any(one.target == name for one in found)]
    rows = [[target_name(name), *(_cell(results, name, *column) for column in columns)] for name in names]
    return "\n".join([markdown(header, rows), "", "In brackets: multiples of ours."])


def _cell(results: Results, name: str, point: str, metric: str) -> str:
    one = results.find((SCENARIO, name, point, metric))
    ours = results.find((SCENARIO, "ours", point, metric))
    if one is None:
        return MISSING
    return figure(one.median) + (f" ({times(ratio(one.median, ours.median))})" if ours and name != "ours" else "")
