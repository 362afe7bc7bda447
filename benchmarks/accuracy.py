"""What each precision of a bundle costs in accuracy, beside what it brings in speed.

The same texts through the engine at every precision, in turn, each in a process of its own: the cosine of every vector
with that of fp32, and rows a second of the engine alone, in batches sorted by length. On a CPU, ONNX Runtime alone in
fp32 is the floor.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import arguments, results_file, shapes
from benchmarks.engines import ENGINES, default_engine, precisions_of, prepare_all
from benchmarks.exported import demo_bundle
from benchmarks.floor import BATCH
from benchmarks.measure import MISSING, figure, markdown, say, times
from benchmarks.results_file import Measurement, Results
from benchmarks.rounds import target_of
from benchmarks.targets.base import vectors_of
from benchmarks.targets.pipe import PipeProcess
from benchmarks.trtexec_switches import Switches
from benchmarks.workload import texts
from engine.bucket import Bucket
from engine.bundle import Bundle, open_bundle
from engine.plans.sidecar import PRECISIONS
from engine.tensors import Array

SCENARIO = "accuracy"
REFERENCE = "fp32"
_FLOOR = "floor"
_LENGTHS = (16, 32, 64, 128, 256, 512)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--bundle", type=arguments.bundle, help="a bundle (default: all-MiniLM-L6-v2, exported with int8)"
    )
    parser.add_argument("--engine", choices=ENGINES, default=default_engine(), help="(default: %(default)s here)")
    parser.add_argument(
        "--precisions",
        type=arguments.names(PRECISIONS, "precision"),
        metavar="A,B",
        help="(default: all that it has for the engine, on a GPU fp16 as well)",
    )
    parser.add_argument("--texts", type=arguments.count, default=500, help="that are compared (default: %(default)s)")
    arguments.add_rounds(parser, 5)
    parser.add_argument(
        "--plan-options", type=arguments.words, default="", metavar="'--x y'", help="more for `python -m export plan`"
    )
    parser.add_argument("--json", type=arguments.new_file, help="also write the figures to this file")


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON. Raises RuntimeError or WorkerError for what cannot be measured."""
    path = args.bundle or demo_bundle(int8=True)
    bundle = open_bundle(path)
    if bundle.manifest.task != "feature-extraction":
        raise RuntimeError(f"{path} is for {bundle.manifest.task}; the vectors of feature-extraction are compared")
    wanted = args.precisions or precisions_of(path, args.engine)
    precisions = [REFERENCE, *(one for one in wanted if one != REFERENCE)]
    cells = _cells(bundle)
    sizes = sorted({cell.batch for cell in cells}), sorted({cell.length for cell in cells})
    found_in = prepare_all(path, args.engine, precisions, *sizes, args.plan_options)
    commands = {
        target_of("auto", one): shapes.ours(where, args.engine, one, cells, Switches())
        for one, where in found_in.items()
    }
    if args.engine == "onnxruntime-cpu":
        commands[_FLOOR] = shapes.floor(path)
    environment = results_file.environment()  # now: a file that is changed meanwhile is not what runs
    rows = token_rows(bundle, texts(args.texts))
    with shapes.started(commands) as processes:
        found = measure(processes, rows, args.rounds)
    options = {"engine": args.engine, "model": bundle.manifest.model, "texts": args.texts}
    results = Results(environment, options, tuple(measurements(found, args.texts)))
    print(table(results))
    if args.json:
        results_file.write(args.json, results)
    return 0


Rounds = Mapping[str, Sequence[tuple[float, Array]]]
"""Target -> rows a second, and the vectors, of each round."""


def measure(processes: Mapping[str, PipeProcess], rows: Sequence[Sequence[int]], rounds: int) -> Rounds:
    """All rows through every process, in turn; one pass before that is not counted."""
    question = {"rows": rows, "batch": BATCH}
    for process in processes.values():
        process.ask({**question, "rows": rows[:BATCH]})
    found: dict[str, list[tuple[float, Array]]] = {name: [] for name in processes}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, process in processes.items():
            answer = process.ask(question)
            found[name].append((len(rows) / answer["seconds"], vectors_of(answer["embeddings"])))
    return found


def measurements(found: Rounds, count: int) -> Iterator[Measurement]:
    """Speed, and for every precision the worst and the mean cosine with fp32 of the same round."""
    point, reference = f"{count} texts", found[target_of("auto", REFERENCE)]
    for name, rounds in found.items():
        floor = None if name == _FLOOR or _FLOOR not in found else (_FLOOR, point, "rows_per_s")
        rates = tuple(rate for rate, _ in rounds)
        yield Measurement(SCENARIO, name, point, "rows_per_s", "rows/s", "higher", rates, floor)
        cosines = [_cosines(vectors, base) for (_, vectors), (_, base) in zip(rounds, reference, strict=True)]
        for metric, take in (("min_cosine", np.min), ("mean_cosine", np.mean)):
            repeats = tuple(float(take(one)) for one in cosines)
            yield Measurement(SCENARIO, name, point, metric, "", "higher", repeats)


def table(results: Results) -> str:
    """A line for each precision; Markdown."""
    found = results.of(SCENARIO)
    rows = []
    for target in dict.fromkeys(one.target for one in found):
        speed, worst, mean = (
            next(one for one in found if (one.target, one.metric) == (target, metric))
            for metric in ("rows_per_s", "min_cosine", "mean_cosine")
        )
        ratios = results.ratios(speed)
        of_floor = times(statistics.median(ratios)) if ratios else MISSING
        rows.append([target, figure(speed.median), of_floor, f"{worst.median:.5f}", f"{mean.median:.5f}"])
    return markdown(["", "rows/s", "of ONNX Runtime alone, fp32", "worst cosine", "mean cosine"], rows)


def token_rows(bundle: Bundle, found: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, cut to what the model takes."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bundle.file("tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.enable_truncation(bundle.manifest.max_length("model"))
    return [list(row.ids) for row in tokenizer.encode_batch(list(found))]


def _cells(bundle: Bundle) -> list[Bucket]:
    longest = bundle.manifest.max_length("model")
    return [Bucket(BATCH, length) for length in sorted({min(length, longest) for length in _LENGTHS})]


def _cosines(vectors: Any, base: Any) -> Any:
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(base, axis=1)
    return (vectors * base).sum(1) / lengths
