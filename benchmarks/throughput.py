"""Throughput of engines alone over a grid of batch sizes and lengths: ours at each precision, ONNX Runtime, PyTorch.

Every cell is run full, each engine in a process of its own, in turn. What a worker makes of it is another question: see
`load`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import arguments, latency_table, results_file, shapes
from benchmarks.bert_graph import Shape
from benchmarks.engines import ENGINES, default_engine, default_precision, prepare_all
from benchmarks.exported import demo_bundle
from benchmarks.measure import MISSING, figure, markdown, say, times
from benchmarks.peer_env import with_torch
from benchmarks.results_file import Measurement, Results
from benchmarks.rounds import shape, target_of
from benchmarks.shapes import Asked, Found
from benchmarks.trtexec_switches import add_switches, export_times, notes, switches_of
from engine.bucket import Bucket
from engine.bundle import Bundle, open_bundle
from engine.plans.sidecar import PRECISIONS

SCENARIO = "throughput"
_FLOOR = "floor"
_RATE = "rows_per_s"
_SHAPE_FIELDS = tuple(Shape.__dataclass_fields__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    engine = default_engine()
    parser.add_argument(
        "--batches", type=arguments.counts, default=[1, 8, 32], metavar="N,N", help="rows of a run (default: 1,8,32)"
    )
    parser.add_argument(
        "--lengths",
        type=lengths,
        default=["16", "128", "max"],
        metavar="N,N",
        help="tokens of a row (default: 16,128,max)",
    )
    parser.add_argument("--engine", choices=ENGINES, default=engine, help="(default: %(default)s here)")
    parser.add_argument(
        "--bundle", type=arguments.bundle_of_tokens, help="a bundle (default: all-MiniLM-L6-v2, exported)"
    )
    parser.add_argument(
        "--precisions",
        type=arguments.names(PRECISIONS, "precision"),
        metavar="A,B",
        help="(default: what the bundle has, on a GPU fp16); int8: CPU only",
    )
    parser.add_argument("--torch-python", metavar="PYTHON", help="a Python that has torch; none: leave it out")
    parser.add_argument(
        "--plan-options", type=arguments.words, default="", metavar="'--x y'", help="more for `python -m export plan`"
    )
    arguments.add_rounds(parser, 3)
    parser.add_argument("--json", type=arguments.new_file, help="also write the figures to this file")
    add_switches(parser, duration_s=1.0)


def main(args: argparse.Namespace) -> int:
    """Measure, print the grids, write the JSON. Raises ValueError, RuntimeError, WorkerError for what cannot be."""
    switches = switches_of(args, args.engine)
    for note in notes(args, args.engine):
        say(f"throughput: {note}")
    path = args.bundle or demo_bundle(int8=args.engine == "onnxruntime-cpu")
    bundle = open_bundle(path)
    cells = grid(bundle, args.batches, args.lengths)
    precisions = args.precisions or _precisions(bundle, args.engine)
    sizes = sorted({cell.batch for cell in cells}), sorted({cell.length for cell in cells})
    found_in = prepare_all(path, args.engine, precisions, *sizes, args.plan_options)
    environment = results_file.environment()  # now: a file that is changed meanwhile is not what runs
    how = "copies" if switches.data_transfers else "alone"
    names = {precision: target_of("auto", precision) for precision in precisions}
    asked = [Asked(name, name, how) for name in names.values()]
    commands = {
        name: shapes.ours(found_in[precision], args.engine, precision, cells, switches)
        for precision, name in names.items()
    }
    if args.engine == "onnxruntime-cpu":
        commands[_FLOOR] = shapes.floor(path)
        asked.append(Asked(_FLOOR, _FLOOR))
    python = shapes.torch_python(args.torch_python, args.engine)
    environment = with_torch(environment, python)
    torch = _torch(path, python, args.engine, precisions)
    commands |= torch
    asked += [Asked(name, name) for name in torch]
    with shapes.started(commands) as processes:
        found = shapes.measure(processes, asked, cells, args.rounds, switches)
    told = {"engine": args.engine, "precisions": list(precisions), "model": bundle.manifest.model}
    options = {**told, "rounds": args.rounds, **switches.as_options()}
    measured = tuple(measurements(found, switches.metrics))
    results = Results(environment, options, measured, {"errors": found.errors})
    print(table(results))
    if args.json:
        results_file.write(args.json, results)
    if switches.export_times:
        export_times(switches.export_times, found.times())
    return 0


def grid(bundle: Bundle, batches: Sequence[int], given: Sequence[str]) -> list[Bucket]:
    """The cells, short and small first. Raises ValueError for a length that the model does not take."""
    longest = bundle.manifest.max_length("model")
    found = sorted({longest if length == "max" else int(length) for length in given})
    if found[-1] > longest:
        raise ValueError(f"--lengths: the model takes {longest} tokens at most, and {found[-1]} was asked for")
    return [Bucket(batch, length) for length in found for batch in batches]


def measurements(found: Found, metrics: Mapping[str, float]) -> Iterator[Measurement]:
    """Times of a run, by `metrics` (name -> percentile); rows a second. By cell; multiples of the floor."""
    yield from latency_table.measurements(found, metrics, SCENARIO)
    has_floor = {point for target, point in found.took if target == _FLOOR}
    for (target, point), rounds in found.took.items():
        place = shape(point)
        assert place is not None
        repeats = tuple(one and len(one.ms) * place.batch / one.seconds for one in rounds)
        floor = (_FLOOR, point, _RATE) if target != _FLOOR and point in has_floor else None
        yield Measurement(SCENARIO, target, point, _RATE, "rows/s", "higher", repeats, floor)


def table(results: Results) -> str:
    """Rows a second by cell, a column for each target; behind ours how many times the floor it is. Markdown.

    Below them what a run took, its median and the last percentile.
    """
    found = results.of(SCENARIO)
    targets = list(dict.fromkeys(one.target for one in found))
    points = dict.fromkeys(one.point for one in found)
    rows = [[point, *(_cell(results, target, point) for target in targets)] for point in points]
    lines = [markdown(["rows/s", *targets], rows)]
    if _FLOOR in targets:
        lines += ["", "In brackets: multiples of ONNX Runtime alone, in fp32, round by round."]
    last = latency_table.highest(found)
    rows = [[point, *(_times(results, target, point, last) for target in targets)] for point in points]
    lines += ["", markdown([f"p50 / {last.removesuffix('_ms')} ms", *targets], rows)]
    errors = results.details.get("errors", {})
    return "\n".join([*lines, *(f"{where}: {error}" for where, error in errors.items())])


def _cell(results: Results, target: str, point: str) -> str:
    one = results.find((SCENARIO, target, point, _RATE))
    if one is None:
        return MISSING
    ratios = results.ratios(one)
    return figure(one.median) + (f" ({times(statistics.median(ratios))})" if ratios else "")


def _times(results: Results, target: str, point: str, last: str) -> str:
    p50, high = (results.find((SCENARIO, target, point, metric)) for metric in ("p50_ms", last))
    return MISSING if p50 is None or high is None else f"{figure(p50.median)} / {figure(high.median)}"


def _precisions(bundle: Bundle, engine: str) -> list[str]:
    """fp32 first on the CPU, as the floor is; there the bundle's other one as well."""
    first = default_precision(engine)
    return [first] if engine != "onnxruntime-cpu" else list(dict.fromkeys([first, bundle.manifest.precision]))


def _torch(path: Path, python: str | None, engine: str, precisions: Sequence[str]) -> Mapping[str, shapes.Command]:
    if python is None:
        return {}
    config = json.loads((path / "config.json").read_text()) if (path / "config.json").is_file() else {}
    if config.get("model_type") != "bert":
        say("torch is left out: it is measured on BERT encoders, and this bundle is none")
        return {}
    shape = Shape(**{name: config[name] for name in _SHAPE_FIELDS if name in config})
    return shapes.torch(python, shape, ["eager"], engine, precisions)


def lengths(text: str) -> list[str]:
    """As arguments.counts; "max" is what the model takes."""
    parts = text.split(",")
    for part in parts:
        if part != "max":
            try:
                arguments.count(part)
            except argparse.ArgumentTypeError:
                raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 1 up, or max") from None
    return parts
