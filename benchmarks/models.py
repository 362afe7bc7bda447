"""`python -m benchmarks models`: every architecture of the zoo exported, opened, asked, and compared with PyTorch.

What `make test-zoo` checks; the table in docs/models.md is made from the results.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import readme, zoo
from benchmarks.measure import markdown
from benchmarks.results_file import Measurement, Results, earlier, environment, read, write
from benchmarks.zoo.answers import gap, payload_of
from benchmarks.zoo.case import Case

RESULTS = Path(__file__).parent / "results" / "zoo.json"
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
LIMIT = 1e-3
"""Largest difference between a reply and PyTorch's: of scores, of components of vectors, of shares of pixels."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to export."""
    parser.add_argument("--architecture", metavar="NAME", help="this one only; the others' results stay")


def main(args: argparse.Namespace) -> int:
    """Export, compare, write results and page; 1 when one does not end as the zoo says, 2 for one that is not there."""
    known = sorted(case.architecture for case in zoo.models())
    if args.architecture not in (None, *known):
        there = ", ".join(known)
        print(f"models: no model of {args.architecture!r} in benchmarks/zoo; there are: {there}", file=sys.stderr)
        return 2
    wrong = 0
    for case in zoo.models():
        if args.architecture not in (None, case.architecture):
            continue
        with tempfile.TemporaryDirectory() as root:
            found = row(case, Path(root))
        print(json.dumps(found), flush=True)
        wrong += not as_expected(case, found)
        record([found])  # at once: what follows may take minutes, or fail
    readme.write(PAGE)
    return int(wrong > 0)


def as_expected(case: Case, found: Mapping[str, Any]) -> bool:
    """Whether the model was exported and answers like PyTorch, or was refused in the words that the zoo names."""
    if case.refused:
        return case.refused in (found["refused"] or "")
    return not found["refused"] and found["difference"] <= LIMIT


def row(case: Case, root: Path) -> dict[str, Any]:
    """Make the model below `root`, export it, ask it; a row of the table."""
    from engine.bundle import open_bundle
    from export.__main__ import export
    from export.errors import ParityFailed, Refused
    from export.recipe import Recipe

    model, bundle = case.make(root / "model"), root / "bundle"
    begin = time.monotonic()
    about = {"task": case.task, "architecture": case.architecture, "note": case.note}
    recipe = Recipe(str(model), case.task, bundle, **case.options)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            figures = export(recipe)
    except (Refused, ParityFailed) as error:
        return {**about, "refused": str(error).replace(str(root), "")}
    seconds = round(time.monotonic() - begin, 1)
    payload = payload_of(case)
    return {
        **about,
        "refused": None,
        "exporter": open_bundle(bundle).manifest.exporter,
        **_graphs(bundle),
        "parity": figures["worst"],
        "difference": float(f"{gap(case, model, payload, ask(bundle, payload)):.0e}"),
        "seconds": seconds,
    }


def ask(bundle: Path, payload: Mapping[str, Any], precision: str | None = None) -> Any:
    """The reply to one job, from the engine that a worker without a GPU opens; of `precision`, where it is named."""
    from engine.backends.onnxruntime import OnnxRuntimeEngine
    from engine.batching.feed import run_rows
    from engine.bundle import open_bundle
    from engine.tasks import load_task
    from export.precision.candidates import in_precision

    opened = open_bundle(bundle)
    opened.verify()
    task = load_task(opened)
    request = task.parse(dict(payload))
    outputs = []
    for graph, rows in groupby(task.preprocess(request), lambda one: one.graph):
        viewed = in_precision(opened, graph, precision) if precision else opened
        with contextlib.closing(OnnxRuntimeEngine(viewed, graph, threads=1)) as engine:
            engine.warm_up()
            outputs += run_rows(engine, list(rows))
    return task.postprocess(request, outputs)


def _graphs(bundle: Path) -> dict[str, Any]:
    """Opset, nodes and size of the portable graphs; of two, the nodes of both."""
    import onnx

    from export.command.progress import size_of

    files = sorted(bundle.glob("graphs/*/fp32.onnx"))
    graphs = [onnx.load(file, load_external_data=False) for file in files]
    return {
        "opset": max(one.version for graph in graphs for one in graph.opset_import if one.domain == ""),
        "nodes": [len(graph.graph.node) for graph in graphs],
        "kilobytes": round(size_of(bundle) / 1e3),
    }


def record(rows: Iterable[Mapping[str, Any]], path: Path = RESULTS) -> None:
    """Put rows into the results file, in place of those of the same architecture."""
    now = environment()
    before = read(path) if path.exists() else Results(now, {}, (), {"models": []})
    old, new = ({one["architecture"]: one for one in some} for some in (before.details["models"], rows))
    models = {**old, **new}
    found = [models[name] for name in sorted(models)]
    exported = [one for one in found if not one["refused"]]
    measurements = tuple(
        Measurement("models", one["architecture"], one["task"], "difference", "1", "lower", (one["difference"],))
        for one in exported
    )
    details = {"models": found, "earlier": earlier(before, now, sorted(old.keys() - new.keys()))}
    write(path, Results(now, {"limit": LIMIT}, measurements, details))


# The page


def count() -> str:
    """How many there are."""
    exported, _ = _rows()
    return f"{len(exported)} architectures, {len({one['task'] for one in exported})} tasks."


def _rows() -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Those that were exported, and those that are refused."""
    rows = read(RESULTS).details["models"]
    return [one for one in rows if not one["refused"]], [one for one in rows if one["refused"]]


def exported_table() -> str:
    """What was measured."""
    header = ("architecture", "task", "exporter", "opset", "nodes", "KB", "parity", "reply", "s", "note")
    cells = [
        (
            one["architecture"],
            f"`{one['task']}`",
            one["exporter"],
            str(one["opset"]),
            " + ".join(map(str, one["nodes"])),
            str(one["kilobytes"]),
            one["parity"],
            f"{one['difference']:.0e}" if one["difference"] else "0",
            str(one["seconds"]),
            one["note"],
        )
        for one in _rows()[0]
    ]
    return markdown(header, cells, aligned=False)


def refused_table() -> str:
    """Why not."""
    cells = [(one["architecture"], f"`{one['task']}`", one["refused"], one["note"]) for one in _rows()[1]]
    return markdown(("architecture", "task", "what the export says", "why"), cells, aligned=False)
