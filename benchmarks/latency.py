"""Latency of BERT encoders at real sizes with random weights: the engine alone, with copies, behind handler(job).

Beside them, in turn on the same machine, each in a process of its own: ONNX Runtime alone (on the CPU), plain PyTorch
(eager with SDPA, torch.compile), which another Python may bring (--torch-python). Published figures of other machines
stand there for orientation. Without a GPU all of it runs on the CPU, at small sizes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import arguments, results_file, shapes
from benchmarks.bert_bundle import bert_bundle
from benchmarks.bert_graph import SHAPES
from benchmarks.engines import ENGINES, check, default_engine, default_precision, prepare
from benchmarks.exported import BUILD
from benchmarks.latency_table import measurements, table
from benchmarks.measure import say
from benchmarks.peer_env import with_torch
from benchmarks.results_file import Measurement, Results
from benchmarks.rounds import target_of
from benchmarks.shapes import Asked, point_of
from benchmarks.trtexec_switches import Switches, add_switches, export_times, notes, switches_of
from engine.bucket import Bucket
from engine.errors import WorkerError
from engine.plans.sidecar import PRECISIONS

_PUBLISHED = Path(__file__).parent / "published.json"
_SIZES = {True: ("minilm,bert-base,bert-large", "16,128,384", "1,8,32,128"), False: ("minilm", "16,128", "1,8")}
"""Models, tokens and rows: on a GPU, and on a CPU, where the largest would take minutes a run."""
_TORCH_MODES = ("eager", "compile")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--engine", choices=ENGINES, help=f"(default: {default_engine()} here)")
    parser.add_argument("--cpu", action="store_true", help="the same as --engine onnxruntime-cpu")
    parser.add_argument("--precision", choices=PRECISIONS, help="(default: fp16, on the CPU fp32)")
    parser.add_argument(
        "--models",
        type=arguments.names(list(SHAPES), "model"),
        metavar="A,B",
        help=f"{', '.join(SHAPES)} (default: all, on the CPU minilm)",
    )
    parser.add_argument(
        "--seq", type=arguments.counts, metavar="N,N", help="tokens of a row (default: 16,128,384; on the CPU 16,128)"
    )
    parser.add_argument(
        "--batch", type=arguments.counts, metavar="N,N", help="rows of a run (default: 1,8,32,128; on the CPU 1,8)"
    )
    arguments.add_rounds(parser, 3)
    parser.add_argument(
        "--torch-python",
        metavar="PYTHON",
        help="a Python that has torch; none: leave it out (default: this one, if it has)",
    )
    parser.add_argument(
        "--torch-modes",
        type=arguments.names(_TORCH_MODES, "mode"),
        metavar="A,B",
        help="eager, compile (torch.compile, which takes its time at every shape; default: both, on the CPU eager)",
    )
    parser.add_argument(
        "--plan-options", type=arguments.words, default="", metavar="'--x y'", help="more for `python -m export plan`"
    )
    parser.add_argument(
        "--work", type=Path, default=BUILD / "latency", help="where the bundles are (default: %(default)s)"
    )
    parser.add_argument("--json", type=arguments.new_file, help="also write the figures to this file, model by model")
    add_switches(parser, duration_s=2.0)


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON.

    A model that cannot be measured is told, and the next one tried. Raises ValueError or RuntimeError for options that
    do not go together, and where not one run came to its end.
    """
    switches = _settle(args)
    for note in notes(args, args.engine):
        say(f"latency: {note}")
    args.torch_python = shapes.torch_python(args.torch_python, args.engine)
    environment = with_torch(results_file.environment(), args.torch_python)
    found: list[Measurement] = []
    times: list[tuple[str, str, Sequence[float]]] = []
    errors: dict[str, str] = {}
    for model in args.models:
        try:
            measured = measure(model, args, switches)
        except (RuntimeError, WorkerError, OSError) as error:  # no plan, no room: the next may have both
            errors[model] = str(error)
            say(f"latency: {model} is left out: {error}")
        else:
            errors |= measured.errors
            found += measurements(measured, switches.metrics)
            times += measured.times()
        results = Results(environment, _options(args, switches), tuple(found), {"errors": errors})
        if args.json and found:  # after every model: what is cut short leaves what it had
            results_file.write(args.json, results)
        if switches.export_times and times:
            export_times(switches.export_times, times)
    if not any(one.median == one.median for one in found):
        raise RuntimeError(f"nothing could be measured; {next(iter(errors.values()))}")
    print(table(results, json.loads(_PUBLISHED.read_text())["rows"]))
    return 0


def _settle(args: argparse.Namespace) -> Switches:
    """Fill in what was not given, in place. Raises ValueError, and RuntimeError where no model can be measured."""
    if args.cpu and args.engine not in (None, "onnxruntime-cpu"):
        raise ValueError(f"--cpu and --engine {args.engine} exclude each other")
    args.engine = args.engine or ("onnxruntime-cpu" if args.cpu else default_engine())
    models, lengths, batches = _SIZES[args.engine != "onnxruntime-cpu"]
    args.models = args.models or models.split(",")
    args.seq = args.seq or arguments.counts(lengths)
    shortest = min(args.models, key=lambda name: SHAPES[name].max_position_embeddings)
    if max(args.seq) > (most := SHAPES[shortest].max_position_embeddings):
        raise ValueError(f"--seq: {shortest} takes {most} tokens at most, and {max(args.seq)} was asked for")
    args.batch = args.batch or arguments.counts(batches)
    args.precision = args.precision or default_precision(args.engine)
    args.torch_modes = args.torch_modes or (_TORCH_MODES[:1] if args.engine == "onnxruntime-cpu" else _TORCH_MODES)
    check(args.engine, args.precision)  # before a bundle of gigabytes is made for nothing
    return switches_of(args, args.engine)


def measure(model: str, args: argparse.Namespace, switches: Switches) -> shapes.Found:
    """All targets at all shapes of one model, its name in front of every point."""
    made = bert_bundle(model, args.work / model)
    bundle = prepare(
        made, args.engine, args.precision, args.batch, args.seq, args.plan_options, copies=args.work / "precisions"
    )
    cells = [Bucket(batch, length) for length in args.seq for batch in args.batch]
    ours = target_of("auto", args.precision)
    commands: dict[str, shapes.Command] = {ours: shapes.ours(bundle, args.engine, args.precision, cells, switches)}
    asked = [Asked(f"{ours}-alone", ours, "alone")]
    if switches.data_transfers:
        asked += [Asked(ours, ours), Asked(f"{ours}-handler", ours, "handler")]
    if args.engine == "onnxruntime-cpu":
        commands["floor"] = shapes.floor(bundle)
        asked.append(Asked("floor", "floor"))
    if args.torch_python is not None:
        torch = shapes.torch(args.torch_python, SHAPES[model], args.torch_modes, args.engine, [args.precision])
        commands |= torch
        asked += [Asked(name, name) for name in torch]
    with shapes.started(commands) as processes:
        return shapes.measure(
            processes, asked, cells, args.rounds, switches, point=lambda cell: f"{model}, {point_of(cell)}"
        )


def _options(args: argparse.Namespace, switches: Switches) -> Mapping[str, object]:
    return {"engine": args.engine, "precision": args.precision, "rounds": args.rounds, **switches.as_options()}
