"""On a GPU machine: tests, a plan, what is measured of it, into one folder: logs, figures, and what machine it was.

    OUT/gpu.json        the machine, and of every step its command, exit code and seconds
    OUT/STEP.log        what the step printed
    OUT/latency.json    the step's own figures; likewise coldstart.json, load.json, throughput.json, tests.xml

A step that fails or takes too long is noted, and the next one goes on. Where a machine is lent for minutes, `--total-s`
ends all of it in time: what is killed from outside writes nothing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import arguments
from benchmarks.bert_bundle import bert_bundle
from benchmarks.exported import BUILD
from benchmarks.machine import machine
from benchmarks.measure import markdown, text_of, write_json
from benchmarks.processes import kill_session
from benchmarks.results_file import a_list, a_mapping
from benchmarks.shapes import torch_python
from engine.probe import gpu

STEPS = ("smoke", "plan", "tests", "coldstart", "load", "latency", "throughput")
_WITH_BUNDLE = ("plan", "coldstart", "load", "throughput")
_TIMED_OUT = 124  # as coreutils' timeout has it
_LAST_LINES = 15


@dataclass
class Step:
    """A command of its own, and how it ended."""

    name: str
    command: Sequence[str]
    exit_code: int | None = None
    seconds: float = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where logs and figures go")
    parser.add_argument(
        "--steps",
        type=arguments.names(list(STEPS), "step"),
        metavar="A,B",
        help=f"{', '.join(STEPS)} (default: all, smoke where there is a script)",
    )
    parser.add_argument("--smoke", type=arguments.existing_file, metavar="SCRIPT", help="a script to run first")
    parser.add_argument("--limit-s", type=arguments.seconds, default=1800, help="for each step (default: %(default)g)")
    parser.add_argument(
        "--total-s", type=arguments.seconds, default=float("inf"), help="for all of it (default: no limit)"
    )
    parser.add_argument(
        "--latency-options",
        type=arguments.words,
        default="",
        metavar="'--x y'",
        help="for `python -m benchmarks latency`",
    )
    parser.add_argument("--plan-options", type=arguments.words, default="", metavar="'--x y'", help="for the step plan")
    parser.add_argument(
        "--coldstart-options",
        type=arguments.words,
        default="",
        metavar="'--x y'",
        help="for `python -m benchmarks coldstart`",
    )
    parser.add_argument(
        "--load-options", type=arguments.words, default="", metavar="'--x y'", help="for `python -m benchmarks load`"
    )
    parser.add_argument(
        "--throughput-options",
        type=arguments.words,
        default="",
        metavar="'--x y'",
        help="for `python -m benchmarks throughput`",
    )
    parser.add_argument("--test-options", type=arguments.words, default="", metavar="'-k x'", help="for pytest")
    parser.add_argument("--torch-python", metavar="PYTHON", help="a Python that has torch")
    parser.add_argument(
        "--work", type=Path, default=BUILD / "gpu", help="where bundles are built (default: %(default)s)"
    )


def main(args: argparse.Namespace) -> int:
    """Run the steps; 1 when one failed. Raises RuntimeError without a GPU, ValueError for what is no list of steps."""
    if args.smoke is None and "smoke" in (args.steps or ()):
        raise ValueError("--steps names smoke, and there is no script; name one with --smoke")
    args.steps = args.steps or list(STEPS)
    if gpu() is None:
        raise RuntimeError("no NVIDIA driver or no GPU here")
    end = time.monotonic() + args.total_s
    args.out.mkdir(parents=True, exist_ok=True)
    if {"latency", "throughput"} & set(args.steps):  # told now: where they run it is a line in a log
        args.torch_python = torch_python(args.torch_python, "tensorrt") or "none"
    steps = steps_of(args)
    before = _earlier(args.out / "gpu.json", {step.name for step in steps})
    for step in steps:
        print(f"{step.name} ...", end=" ", flush=True)
        log = args.out / f"{step.name}.log"
        if step.name not in _WITH_BUNDLE or _bundle_is_there(step, args.work / "minilm", log):
            run(step, log, min(args.limit_s, end - time.monotonic()))
        print("passed" if step.exit_code == 0 else f"exit code {step.exit_code}", f"{step.seconds:.0f} s", flush=True)
        if step.exit_code:  # said here as well: the logs may not be at hand
            print(*(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-_LAST_LINES:]), sep="\n")
        done = [asdict(one) for one in steps if one.exit_code is not None]
        write_json(args.out / "gpu.json", {"machine": machine(), "steps": [*before, *done]})
    print(markdown(["step", "exit code", "s"], [[s.name, str(s.exit_code), f"{s.seconds:.0f}"] for s in steps]))
    return 0 if all(step.exit_code == 0 for step in steps) else 1


def _bundle_is_there(step: Step, path: Path, log: Path) -> bool:
    """Whether the bundle of the steps that need one could be made; else why not is in `log`."""
    try:
        bert_bundle("minilm", path)
    except Exception:
        step.exit_code = 1
        log.write_text(traceback.format_exc())
    return step.exit_code is None


def _earlier(summary: Path, names: set[str]) -> list[Any]:
    """The steps of earlier calls that this one does not repeat: where time is short, the work is split.

    Raises ValueError for a file that is none, OSError for one that cannot be read.
    """
    if not summary.exists():
        return []
    try:
        found = a_list(a_mapping(json.loads(text_of(summary)), "the file")["steps"], "steps")
        return [step for step in found if a_mapping(step, "a step")["name"] not in names]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{summary} is no summary of this command; move it away, or name another --out") from error


def steps_of(args: argparse.Namespace) -> list[Step]:
    """What is to be run, in order."""
    python, out, bundle = sys.executable, args.out, str(args.work / "minilm")
    plan = [python, "-m", "export", "plan", bundle, *shlex.split(args.plan_options)]
    latency = [python, "-m", "benchmarks", "latency", "--json", str(out / "latency.json"), "--work", str(args.work)]
    latency += shlex.split(args.latency_options)
    torch = ["--torch-python", args.torch_python] if args.torch_python else []
    coldstart = [python, "-m", "benchmarks", "coldstart", "--bundle", bundle, "--engine", "tensorrt", "--warm-only"]
    coldstart += shlex.split(args.coldstart_options)
    load = [python, "-m", "benchmarks", "load", "--bundle", bundle, "--engine", "tensorrt"]
    load += shlex.split(args.load_options)
    throughput = [python, "-m", "benchmarks", "throughput", "--bundle", bundle, "--engine", "tensorrt"]
    throughput += shlex.split(args.throughput_options)
    tests = [python, "-m", "pytest", "-m", "gpu", "tests/gpu", "-v", "--durations=0", "--junit-xml"]
    tests += [str(out / "tests.xml"), *shlex.split(args.test_options)]
    commands = {
        "smoke": [python, str(args.smoke)],
        "plan": plan,
        "tests": tests,
        "coldstart": [*coldstart, "--json", str(out / "coldstart.json")],
        "load": [*load, "--json", str(out / "load.json")],
        "latency": [*latency, *torch],
        "throughput": [*throughput, "--json", str(out / "throughput.json"), *torch],
    }
    wanted = [name for name in STEPS if name in args.steps and (name != "smoke" or args.smoke)]
    return [Step(name, commands[name]) for name in wanted]


def run(step: Step, log: Path, limit_s: float) -> None:
    """Run one step to its end, or end it with everything that it started; note how it went."""
    begin = time.perf_counter()
    with open(log, "w") as file:
        if limit_s <= 0:
            file.write("not begun: the time for all steps is over\n")
            step.exit_code = _TIMED_OUT
            return
        file.write(f"$ {' '.join(step.command)}\n")
        file.flush()
        # A session of its own, so that what a step started ends with it.
        process = subprocess.Popen(step.command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            step.exit_code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            step.exit_code = _TIMED_OUT
        finally:
            kill_session(process)
    step.seconds = round(time.perf_counter() - begin, 1)
