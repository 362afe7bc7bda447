"""`python -m benchmarks COMMAND`: the demo, the emulated endpoint, and this worker beside others."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is to be cleaned up yet: Ctrl-C needs no traceback

import argparse
import os
import select
import sys
from importlib import import_module
from typing import NoReturn

from engine.errors import WorkerError
from export.errors import Refused

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, `timeout` or a CI, a terminal that closes
_COMMANDS = {
    "accuracy": "what each precision of a bundle costs in accuracy, beside its speed",
    "batching": "what batches texts are put in: padding and engine runs, counted",
    "coldstart": "how long a start takes, stage by stage, beside the least that any process must do",
    "compare": "what got slower between two results files, and how sure that is",
    "demo": "export all-MiniLM-L6-v2, serve it, send it jobs",
    "distance": "a start, and a job after a pause, with TLS and a round trip between worker and platform",
    "emulator": "a RunPod queue endpoint on localhost",
    "gpu": "everything that a GPU machine can check and measure, into one folder",
    "int8": "both forms of int8 on image models, and TensorRT's form on texts that its export has not seen",
    "large": "the memory that exporting a model of 1.3 GB takes, stage by stage, and booting it",
    "latency": "BERT encoders at real sizes: engine, copies, handler; beside torch and published figures",
    "load": "one worker under load: closed and open loops, idle and bulk jobs, beside the floor",
    "memory": "what every target holds after its start, and after many jobs",
    "models": "every architecture exported, opened, asked, compared with PyTorch; writes docs/models.md",
    "peers": "this worker beside the ones that users would run instead, in one run",
    "quick": "a few minutes of what can tell a regression, held against budgets and an earlier run",
    "readme": "write the tables of README and docs/ anew from code, settings and results",
    "recommend": "engine, batch ladder, concurrency, precision and cost for a latency target, from results files",
    "report": "one page with plots, from results files",
    "tasks": "microseconds of each stage of a job, task by task; writes docs/tasks.md",
    "soak": "a hundred thousand jobs: does memory grow, are files or threads left open",
    "throughput": "engines alone over a grid of batch sizes and lengths, beside ONNX Runtime and PyTorch",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 2, with a sentence, for what cannot be measured, read or written."""
    return _run(_asked(argv))


def _asked(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = (sys.argv[1:] if argv is None else argv)[:1]
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if asked == [name]:  # import only what runs: the others bring libraries that take seconds
            import_module(f"benchmarks.{name}").add_arguments(command)
    return parser.parse_args(argv)


def _run(args: argparse.Namespace) -> int:
    try:
        code: int = import_module(f"benchmarks.{args.command}").main(args)
        sys.stdout.flush()
    except (WorkerError, Refused, RuntimeError, OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE
        print(f"{args.command}: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # whatever was started has been stopped on the way here
        print(f"{args.command}: interrupted", file=sys.stderr)
        return 130
    return code


def _nobody_reads() -> bool:
    """Whether it was our own output that broke, as behind `| head`, and not a process's that was measured."""
    output = select.poll()
    output.register(sys.stdout, 0)
    if not any(events & select.POLLERR for _, events in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter flushes into it once more
    return True


def _interrupt(signum: int, frame: object) -> NoReturn:
    for number in _SIGNALS:  # `timeout` sends it twice: the second one would cut short what the first one ends
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    arguments = _asked(None)
    for one in _SIGNALS:
        if signal.getsignal(one) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(one, _interrupt)
    sys.exit(_run(arguments))
