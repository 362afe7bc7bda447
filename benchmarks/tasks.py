"""Every task on every architecture of the zoo: exported, compared, served; and where a job's time goes.

Writes benchmarks/results/tasks-cpu.json and, from it, the tables of docs/tasks.md.

Names in results files, scenario "tasks":
    targets   ours
    points    the task's tag
    metrics   parse_us, preprocess_us, engine_us, postprocess_us: of one job, the PERCENTth of its round's jobs
    details   architectures: task, architecture, exported, parity, tensorrt of each row; models: tag -> the measured
              model in words, and the rows of the job; earlier: see results_file.earlier
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from benchmarks import zoo
from benchmarks.exported import BUILD
from benchmarks.measure import markdown, percentile
from benchmarks.results_file import Results, earlier, environment, read, write
from benchmarks.rounds import Round, measurements
from benchmarks.zoo.case import Case, Stages
from engine.bundle import open_bundle
from engine.errors import BundleError

RESULTS = Path("benchmarks/results/tasks-cpu.json")
PAGE = Path("docs/tasks.md")
SHARE = 0.2
"""Of a job, outside the engine; above it a sentence says why."""

PERCENT = 10
"""Which of the jobs is reported: what else runs on a machine makes a job slower, never faster."""

SCENARIO = "tasks"
OURS = "ours"
_WARM_UPS, _JOBS, _ROUNDS = 20, 100, 3
_STAGES = ("parse", "preprocess", "engine", "postprocess")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--task", metavar="TAG", help="this task only; the others' results stay")
    parser.add_argument("--part", choices=("architectures", "stages"), help="this table only")
    parser.add_argument("--tables", action="store_true", help="only write the tables anew from the results")


def main(args: argparse.Namespace) -> int:
    """Measure, write the results and the page; 1 when a model of the zoo cannot be exported, 2 for an unknown task."""
    known = sorted({case.task for case in zoo.cases()})
    if args.task not in (None, *known):
        print(f"tasks: no model of {args.task!r} in benchmarks/zoo; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    results = read(RESULTS) if RESULTS.exists() else Results({}, {}, (), {"architectures": [], "models": {}})
    wanted: list[tuple[str, Any]] = [("architectures", case) for case in zoo.cases()]
    wanted += [("stages", case) for case in zoo.stages()]
    for part, case in wanted:
        if args.tables or args.task not in (None, case.task) or args.part not in (None, part):
            continue
        if part == "architectures":
            results = with_architecture(results, architecture_row(case))
        else:
            results = with_stages(results, case, *stages(case))
        print(f"{case.task}: {part}", flush=True)
        write(RESULTS, results)  # at once: what follows may take minutes, or fail
    PAGE.write_text(rendered(PAGE.read_text(), results))
    return int(any(not row["exported"] for row in results.details["architectures"]))


def with_architecture(results: Results, row: dict[str, Any]) -> Results:
    """`results` with this row, in place of an older one of the same task and architecture."""
    same = itemgetter("task", "architecture")
    rows = [one for one in results.details["architectures"] if same(one) != same(row)]
    details = {**results.details, "architectures": sorted([*rows, row], key=same)}
    return _renewed(replace(results, details=details), _architecture(row))


def with_stages(results: Results, case: Stages, rounds: Sequence[Round], rows: int) -> Results:
    """`results` with what `stages` found of a case, in place of what was there of the same task."""
    kept = [one for one in results.measurements if one.point != case.task]
    found = sorted([*kept, *measurements(SCENARIO, rounds)], key=attrgetter("point"))
    models = {**results.details["models"], case.task: {"model": case.model, "rows": rows}}
    details = {**results.details, "models": dict(sorted(models.items()))}
    return _renewed(replace(results, measurements=tuple(found), details=details), _stage(case.task))


def _renewed(results: Results, row: str) -> Results:
    """`results` as of now, but for the other rows."""
    now = environment()
    rows = [*map(_architecture, results.details["architectures"]), *map(_stage, results.details["models"])]
    details = {**results.details, "earlier": earlier(results, now, (one for one in rows if one != row))}
    return replace(results, environment=now, details=details)


def _architecture(row: Mapping[str, Any]) -> str:
    return f"{row['task']}, {row['architecture']}"


def _stage(task: str) -> str:
    return f"{task}, stages"


def _export(make: Callable[[Path], Path], task: str, root: Path, **options: Any) -> tuple[Path, dict[str, Any]]:
    """A bundle of what `make` makes, below `root`, and the figures of its gate; the stages' lines are swallowed."""
    from export.__main__ import export
    from export.recipe import Recipe

    model, bundle = make(root / "model"), root / "bundle"
    with contextlib.redirect_stdout(io.StringIO()):
        return bundle, export(Recipe(str(model), task, bundle, **options))


def architecture_row(case: Case) -> dict[str, Any]:
    """Whether a small model of the architecture can be exported, and how far it is from PyTorch."""
    from export.errors import ParityFailed, Refused

    row = {"task": case.task, "architecture": case.architecture}
    with tempfile.TemporaryDirectory() as root:
        try:
            _, figures = _export(case.make, case.task, Path(root), **case.options)
        except (Refused, ParityFailed) as error:
            return {**row, "exported": False, "parity": str(error), "tensorrt": None}
    return {**row, "exported": True, "parity": figures["worst"], "tensorrt": None}


def stages(case: Stages) -> tuple[list[Round], int]:
    """Microseconds that the stages of one job take on the CPU, one job after the other, in rounds; and its rows.

    Of the jobs of a round, PERCENT are faster.
    """
    from engine.backends.onnxruntime import OnnxRuntimeEngine
    from engine.batching.feed import run_rows
    from engine.tasks import load_task

    bundle = open_bundle(_kept(case))
    task = load_task(bundle)
    # One thread: two wait for each other where others run.
    engines = {graph: OnnxRuntimeEngine(bundle, graph, threads=1) for graph in bundle.manifest.graphs}
    for engine in engines.values():
        engine.warm_up()
    times: dict[str, list[float]] = {name: [] for name in _STAGES}
    for _ in range(_WARM_UPS + _JOBS * _ROUNDS):
        marks = [time.perf_counter()]
        request = task.parse(case.payload)
        marks.append(time.perf_counter())
        rows = task.preprocess(request)
        marks.append(time.perf_counter())
        outputs = []  # graph by graph: tasks of several have the rows of each together
        for graph, group in groupby(rows, lambda row: row.graph):
            outputs += run_rows(engines[graph], list(group))
        marks.append(time.perf_counter())
        task.postprocess(request, outputs)
        marks.append(time.perf_counter())
        for name, begin, end in zip(_STAGES, marks, marks[1:], strict=False):
            times[name].append(end - begin)
    for engine in engines.values():
        engine.close()
    rounds: list[Round] = []
    for start in range(_WARM_UPS, _WARM_UPS + _JOBS * _ROUNDS, _JOBS):
        taken = {name: percentile(times[name][start : start + _JOBS], PERCENT) * 1e6 for name in _STAGES}
        rounds.append({(OURS, case.task): {f"{name}_us": round(us, 1) for name, us in taken.items()}})
    return rounds, len(rows)


def _kept(case: Stages) -> Path:
    """The bundle of the case, exported once and kept below build/."""
    root = BUILD / "zoo" / case.task
    try:
        open_bundle(root / "bundle").verify()
    except BundleError:
        shutil.rmtree(root, ignore_errors=True)
        _export(case.make, case.task, root)
    return root / "bundle"


def microseconds(results: Results) -> dict[str, dict[str, float]]:
    """Task -> stage -> the median of its rounds."""
    found: dict[str, dict[str, float]] = {}
    for one in results.of(SCENARIO):
        found.setdefault(one.point, {})[one.metric.removesuffix("_us")] = one.median
    return found


def outside(stages: Mapping[str, float]) -> float:
    """The share of a job that is not the engine's."""
    return 1 - stages["engine"] / sum(stages.values())


# The page


def rendered(text: str, results: Results) -> str:
    """`text` with every table between its markers made anew. Raises ValueError where a marker is missing."""
    tables = {"tasks": _tasks_table, "architectures": _architectures_table, "stages": _stages_table}
    for name, table in tables.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"{PAGE} lacks the markers {begin.strip()} and {end}")
        made = f"{begin}{table(results)}\n{end}"
        text = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: made, text, flags=re.DOTALL)  # noqa: B023
    return text


def _tasks_table(results: Results) -> str:
    from engine.tasks import TASKS, task_class

    rows = [(f"`{tag}`", task_class(tag).auto_class, task_class(tag).summary) for tag in TASKS]
    return markdown(("task", "model class", "what it does"), rows, aligned=False)


def _architectures_table(results: Results) -> str:
    header = ("task", "architecture", "exported", "parity with PyTorch", "ONNX Runtime, CPU", "TensorRT")
    rows = [
        (
            f"`{row['task']}`",
            row["architecture"],
            "yes" if row["exported"] else "no",
            row["parity"],
            "yes" if row["exported"] else "no",  # the gate runs what the worker runs
            row["tensorrt"] or "not yet",
        )
        for row in results.details["architectures"]
    ]
    return markdown(header, rows, aligned=False)


def _stages_table(results: Results) -> str:
    why = {case.task: case.why for case in zoo.stages()}
    rows = []
    for task, times in sorted(microseconds(results).items()):
        cells = [f"{times[name]:.0f}" for name in _STAGES]
        share = outside(times)
        model = results.details["models"][task]["model"]
        rows.append((f"`{task}`", model, *cells, f"{share:.1%}", why[task] if share > SHARE else ""))
    return markdown(("task", "model", *_STAGES, "outside the engine", "why"), rows, aligned=False)
