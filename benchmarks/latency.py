"""Latency of BERT encoders at real sizes with random weights: the engine alone, with copies, behind handler(job).

Beside them, on the same machine in the same run, plain PyTorch (eager with SDPA, torch.compile), which another Python
may bring (--torch-python), and published figures of other machines for orientation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bert_bundle import bert_bundle
from benchmarks.bert_graph import SHAPES
from benchmarks.engine_times import Times
from benchmarks.exported import BUILD
from benchmarks.machine import machine
from benchmarks.measure import figure, markdown, percentile, ratio, times, write_json
from engine.backends.base import Engine
from engine.bucket import Bucket
from engine.bundle import Bundle, changed_bundle_folder, open_bundle
from engine.plan import Machine, mismatch, plans_of, stale
from engine.probe import gpu, tensorrt_version

ENGINES = ("tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
_TORCH = Path(__file__).parent / "targets" / "torch_latency.py"
_PUBLISHED = Path(__file__).parent / "published.json"
_OURS = ("alone", "copies", "handler")


@dataclass
class Row:
    """The figures of one model at one shape: name -> {"p50", "p99", "runs"}, in ms."""

    model: str
    seq: int
    batch: int
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def p50(self, name: str) -> float | None:
        """None where it was not measured."""
        return self.figures[name]["p50"] if name in self.figures else None

    def add(self, name: str, took_ms: Sequence[float]) -> None:
        """Keep what was measured."""
        spread = {f"p{percent}": round(percentile(took_ms, percent), 4) for percent in (50, 99)}
        self.figures[name] = {**spread, "runs": len(took_ms)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    default = "tensorrt" if gpu() else "onnxruntime-cpu"
    parser.add_argument("--engine", choices=ENGINES, default=default, help="(default here: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, help="(default: fp16, on the CPU fp32)")
    parser.add_argument("--models", type=_names, default=list(SHAPES), metavar="A,B", help=", ".join(SHAPES))
    parser.add_argument("--seq", type=_numbers, default=[16, 128, 384], metavar="N,N", help="tokens of a row")
    parser.add_argument("--batch", type=_numbers, default=[1, 8, 32, 128], metavar="N,N", help="rows of a run")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure, at most (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=1000, help="for each figure, at most (default: %(default)s)")
    parser.add_argument("--torch-python", metavar="PYTHON", help="a Python that has torch; none: torch is left out")
    parser.add_argument("--torch-modes", type=lambda text: text.split(","), default=["eager", "compile"], metavar="A,B")
    parser.add_argument("--plan-options", default="", metavar="'--x y'", help="more for `python -m export plan`")
    parser.add_argument("--work", type=Path, default=BUILD / "latency", help="where the bundles are (%(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file, model by model")


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON."""
    args.precision = args.precision or ("fp32" if args.engine == "onnxruntime-cpu" else "fp16")
    rows: list[Row] = []
    for model in args.models:
        mine = [Row(model, seq, batch) for seq in args.seq for batch in args.batch]
        rows += mine
        measure_ours(model, mine, args)
        _save(rows, args)
        if args.torch_python:
            measure_torch(model, mine, args)
            _save(rows, args)
    published = json.loads(_PUBLISHED.read_text())["rows"]
    print(table(rows, published))
    for line in goals(rows):
        print(line)
    return 0


def measure_ours(model: str, rows: Sequence[Row], args: argparse.Namespace) -> None:
    """The engine's figures of one model, in place."""
    bundle = bert_bundle(model, args.work / model)
    with opened(bundle, args) as (found, engine):
        measured = Times(found, engine, seconds=args.seconds, most=args.runs)
        for row in rows:
            bucket = Bucket(row.batch, row.seq)
            took = measured.alone(bucket)
            if took is not None:
                row.add("alone", took)
            row.add("copies", measured.with_copies(bucket))
            row.add("handler", measured.through_handler(bucket))
            shown = ", ".join(f"{name} {figure(row.p50(name), 'ms')}" for name in _OURS if name in row.figures)
            print(f"{model}, {row.seq} tokens, batch {row.batch}: {shown}", file=sys.stderr, flush=True)


@contextmanager
def opened(path: Path, args: argparse.Namespace) -> Iterator[tuple[Bundle, Engine]]:
    """The bundle and an engine that is warm; a TensorRT plan is built when there is none for these shapes."""
    largest = max(args.batch)
    if args.engine == "tensorrt":
        engine = _tensorrt(path, args)
    elif args.engine == "onnxruntime-cuda":
        from engine.backends.onnxruntime_cuda import OnnxRuntimeCudaEngine

        _need_gpu()
        engine = OnnxRuntimeCudaEngine(_in(path, args.precision), max_batch=largest)
    else:
        from engine.backends.onnxruntime import OnnxRuntimeEngine

        engine = OnnxRuntimeEngine(_in(path, args.precision), max_batch=largest)
    engine.warm_up()
    try:
        yield open_bundle(path), engine
    finally:
        engine.close()


def _in(path: Path, precision: str) -> Bundle:
    """The bundle as if it had this precision only; its graph is made when it is not there."""
    from export.plan_from_onnx import add_precision
    from export.plan_gate import in_precision

    precision = "fp32" if precision == "tf32" else precision
    if precision not in open_bundle(path).manifest.graphs["model"].onnx:
        with changed_bundle_folder(path) as folder:
            add_precision(folder, "model", precision)
    return in_precision(open_bundle(path), "model", precision)


def _need_gpu() -> None:
    if gpu() is None:
        raise SystemExit("latency: no NVIDIA driver or no GPU here; take --engine onnxruntime-cpu")


def _tensorrt(path: Path, args: argparse.Namespace) -> Engine:
    _need_gpu()
    plan = _plan(path, args)
    if plan is None:
        command = [sys.executable, "-m", "export", "plan", str(path), "--precision", args.precision]
        command += ["--batches", ",".join(map(str, args.batch)), "--lengths", ",".join(map(str, args.seq))]
        if subprocess.run([*command, *args.plan_options.split()]).returncode:
            raise SystemExit(f"latency: no plan for {path}")
        plan = _plan(path, args)
    from engine.backends.tensorrt import TensorRtEngine

    assert plan is not None, "the plan was built just now"
    return TensorRtEngine(open_bundle(path), "model", plan)


def _plan(path: Path, args: argparse.Namespace) -> Any:
    """A plan for this GPU with all the buckets that are asked for."""
    found, version = gpu(), tensorrt_version()
    if found is None or version is None:
        return None
    here = Machine(version, ".".join(map(str, found.compute_capability)), found.name)
    bundle = open_bundle(path)
    for file in plans_of(bundle):
        covers = set(args.batch) <= set(file.plan.batches) and set(args.seq) <= set(file.plan.lengths)
        obstacle = mismatch(file.plan, here) or stale(file.plan, bundle)
        if covers and file.plan.precision == args.precision and obstacle is None:
            return file
    return None


def measure_torch(model: str, rows: Sequence[Row], args: argparse.Namespace) -> None:
    """PyTorch's figures of one model, in place, from a process of its own; what it cannot do is noted."""
    asked = {
        "models": {model: asdict(SHAPES[model])},
        "seqs": args.seq,
        "batches": args.batch,
        "modes": args.torch_modes,
        "seconds": args.seconds,
        "runs": args.runs,
    }
    by_shape = {(row.seq, row.batch): row for row in rows}
    command = [args.torch_python, str(_TORCH), json.dumps(asked)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found = json.loads(line)
            if "mode" not in found:
                print(f"torch {found['torch']} on {found['gpu']}, {found['dtype']}", file=sys.stderr, flush=True)
                continue
            row, name = by_shape[found["seq"], found["batch"]], f"torch {found['mode']}"
            if "ms" in found:
                row.add(name, found["ms"])
            else:
                row.errors[name] = found["error"]
    if process.returncode:
        for row in rows:
            row.errors["torch"] = f"{args.torch_python} ended with exit code {process.returncode}"


def table(rows: Sequence[Row], published: Sequence[Mapping[str, Any]]) -> str:
    """p50 and p99 of everything measured, beside what was published; Markdown."""
    names = [name for name in (*_OURS, "torch eager", "torch compile") if any(name in row.figures for row in rows)]
    lines = []
    for row in rows:
        cells = [row.model, str(row.seq), str(row.batch)]
        for name in names:
            found = row.figures.get(name)
            cells.append(f"{figure(found['p50'])} / {figure(found['p99'])}" if found else "-")
        cells.append(times(ratio(row.p50("torch compile") or row.p50("torch eager"), row.p50("copies"))))
        others = [f"{one['gpu']} {one['ms']}" for one in published if _is_of(one, row)]
        lines.append([*cells, ", ".join(others) or "-"])
    header = ["model", "seq", "batch", *(f"{name}, p50 / p99 ms" for name in names), "torch / copies", "published, ms"]
    return markdown(header, lines)


def _is_of(published: Mapping[str, Any], row: Row) -> bool:
    return (published["model"], published["seq"], published["batch"]) == (row.model, row.seq, row.batch)


def goals(rows: Sequence[Row]) -> list[str]:
    """A line for each goal that these rows decide: whether it is met, and by what figures."""
    said = []
    for row in rows:
        alone, copies, handler, compiled = (row.p50(name) for name in (*_OURS, "torch compile"))
        where = f"{row.model}, {row.seq} tokens, batch {row.batch}"
        if (row.model, row.seq, row.batch) == ("bert-base", 128, 1) and alone is not None and handler is not None:
            said.append(_goal(alone <= 0.5, f"{where}: engine {figure(alone, 'ms')}, at most 0.5 (of an H200)"))
            more = handler - alone
            said.append(_goal(more <= 0.25, f"{where}: copies and handler add {figure(more, 'ms')}, at most 0.25"))
        least = {1: 2.0, 32: 1.0}.get(row.batch)
        if least is not None and compiled is not None and copies is not None:
            faster = compiled / copies
            said.append(
                _goal(faster >= least, f"{where}: {times(faster)} as fast as torch.compile, at least {least:g}x")
            )
    return said


def _goal(met: bool, text: str) -> str:
    return f"{'met   ' if met else 'MISSED'}  {text}"


def _save(rows: Sequence[Row], args: argparse.Namespace) -> None:
    if args.json:
        asked = {"engine": args.engine, "precision": args.precision, "seconds": args.seconds, "runs": args.runs}
        write_json(args.json, {"machine": machine(), **asked, "goals": goals(rows), "rows": [asdict(r) for r in rows]})


def _numbers(text: str) -> list[int]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 1 up")
    return found


def _names(text: str) -> list[str]:
    found = text.split(",")
    if unknown := [name for name in found if name not in SHAPES]:
        raise argparse.ArgumentTypeError(f"no model {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    return found
