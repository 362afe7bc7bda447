"""int8 where the ladder has a choice: with and without calibrated scales on image models, and in TensorRT's form.

Image models have sizes that people use and random weights, which say how fast they are and nothing else; rows a second
are of the engine alone, in batches of 16, fp32 and both forms of int8 in turns. TensorRT's form is exported from
all-MiniLM-L6-v2, and compared with fp32 on texts that the export has not seen, in ONNX Runtime on the CPU.

Names in results files, scenario "int8":
    targets   fp32, dynamic, static; tensorrt
    points    the model
    metrics   rows_per_s; min_cosine, mean_cosine, search_s (the ladder's seconds)
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import arguments, results_file
from benchmarks.exported import BUILD, exported
from benchmarks.measure import figure, markdown
from benchmarks.results_file import Measurement, Results
from benchmarks.weights import minilm_folder
from benchmarks.workload import texts

SCENARIO = "int8"
FORMS = ("fp32", "dynamic", "static")
_ROWS = 16
_MINILM = "all-MiniLM-L6-v2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--models",
        type=arguments.names(list(MODELS), "model"),
        default=list(MODELS),
        metavar="A,B",
        help=f"{', '.join(MODELS)} (default: all)",
    )
    parser.add_argument(
        "--texts",
        type=arguments.count_or_none,
        default=500,
        help="that TensorRT's form is compared on (default: %(default)s)",
    )
    arguments.add_rounds(parser, 3, "times that speed is measured")
    parser.add_argument("--json", type=arguments.new_file, help="also write the figures to this file")


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON."""
    environment = results_file.environment()
    found = [one for name in args.models for one in _forms(name, args.rounds)]
    if args.texts:
        found += _tensorrt(args.texts)
    options = {"models": args.models, "texts": args.texts}
    results = Results(environment, options, tuple(found))
    print(table(results))
    if args.json:
        results_file.write(args.json, results)
    return 0


def table(results: Results) -> str:
    """A line for each target and model; Markdown."""
    rows = []
    for one in results.of(SCENARIO):
        ratios = results.ratios(one)
        of_fp32 = f"{statistics.median(ratios):.2f}x" if ratios else ""
        rows.append([one.point, one.target, one.metric, figure(one.median), of_fp32])
    return markdown(["model", "", "", "", "of fp32"], rows)


def _forms(name: str, rounds: int) -> Iterator[Measurement]:
    from engine.bundle import open_bundle
    from engine.tensors import Row
    from export.int8.dynamic import DynamicInt8
    from export.int8.static import CPU
    from export.int8.static_graphs import StaticInt8
    from export.precision.candidates import candidate_of, of_bundle
    from export.precision.rates import rates

    model = BUILD / "int8" / f"{name}-model"
    if not model.exists():
        _write(name, model)
    bundle = exported(model, BUILD / "int8" / name, task="image-classification")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(bundle, Path(folder) / "bundle"))
        opened = open_bundle(copy)
        (pixels,) = opened.manifest.graphs["model"].inputs
        noise = np.random.default_rng(0)
        shape = [int(axis) for axis in pixels.shape[1:]]
        rows = [Row({pixels.name: noise.integers(0, 256, shape, np.uint8)}, 1) for _ in range(_ROWS)]
        portable = copy / opened.manifest.graphs["model"].onnx["fp32"]
        int8 = DynamicInt8(portable, copy / "work", {}, rows)
        made = [path for form in (int8, StaticInt8(int8, CPU)) if (path := form.untuned())]
        candidates = [next(iter(of_bundle(opened))), *(candidate_of(copy, "int8", path) for path in made)]
        found = [rates(candidates, rows) for _ in range(rounds)]
    for place, form in enumerate(FORMS):
        floor = (FORMS[0], name, "rows_per_s") if place else None
        repeats = tuple(one[place] for one in found)
        yield Measurement(SCENARIO, form, name, "rows_per_s", "rows/s", "higher", repeats, floor)


def _tensorrt(count: int) -> Iterator[Measurement]:
    from engine.bundle import open_bundle
    from export.precision.candidates import portable

    path = exported(minilm_folder(), BUILD / "int8" / _MINILM, "--precision", "tensorrt=int8")
    bundle = open_bundle(path)
    steps = json.loads((path / "parity.json").read_text())["ladder"]["tensorrt"]
    if bundle.manifest.precisions["tensorrt"] == "int8":
        exact, ours = (_vectors(portable(bundle, "model", precision), count) for precision in ("fp32", "int8"))
        cosines = (exact * ours).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(ours, axis=1)
        for metric, value in (("min_cosine", cosines.min()), ("mean_cosine", cosines.mean())):
            yield Measurement(SCENARIO, "tensorrt", _MINILM, metric, "", "higher", (float(value),))
    seconds = sum(step["seconds"] for step in steps)
    yield Measurement(SCENARIO, "tensorrt", _MINILM, "search_s", "s", "lower", (seconds,))


def _vectors(view: Any, count: int) -> Any:
    from engine.backends.onnxruntime import OnnxRuntimeEngine
    from engine.batching.feed import run_rows
    from engine.tasks import load_task

    task = load_task(view)
    rows = [row for text in texts(count, seed=1) for row in task.preprocess(task.parse({"text": text}))]
    rows.sort(key=lambda row: row.length)
    with closing(OnnxRuntimeEngine(view)) as engine:
        (output,) = engine.outputs
        batches = (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))
        return np.stack([one[output.name] for batch in batches for one in run_rows(engine, batch)]).astype(np.float64)


def _write(name: str, folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    kind, options = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**options)
    getattr(transformers, f"{kind}ForImageClassification")(config).save_pretrained(folder)
    transformers.ViTImageProcessor().save_pretrained(folder)


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet-18": ("ResNet", {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}),
    "ResNet-50": ("ResNet", {}),
    "ConvNeXt-tiny": ("ConvNext", {}),
    "ViT-small": ("ViT", {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}),
}
"""transformers' classes, and what differs from their defaults; images of 224 x 224 pixels."""
