"""Where a job's time goes, task by task.

Writes benchmarks/results/tasks-cpu.json and, from it, the tables of docs/tasks.md.

Names in results files, scenario "tasks":
    targets   ours
    points    the task's tag
    metrics   parse_us, preprocess_us, engine_us, postprocess_us: of one job, the PERCENTth of its round's jobs
    details   models: tag -> the measured model in words, and the rows of the job; earlier: see results_file.earlier
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from benchmarks import readme, zoo
from benchmarks.exported import BUILD
from benchmarks.measure import markdown, percentile
from benchmarks.results_file import Results, earlier, environment, read, write
from benchmarks.rounds import Round, measurements
from benchmarks.zoo.case import Stages
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


def main(args: argparse.Namespace) -> int:
    """Measure, write the results and the page. Raises ValueError for an unknown task."""
    known = sorted(case.task for case in zoo.stages())
    if args.task not in (None, *known):
        raise ValueError(f"no model of {args.task!r} in benchmarks/zoo; there are: {', '.join(known)}")
    results = read(RESULTS) if RESULTS.exists() else Results({}, {}, (), {"models": {}})
    for case in zoo.stages():
        if args.task in (None, case.task):
            results = with_stages(results, case, *stages(case))
            print(case.task, flush=True)
            write(RESULTS, results)  # at once: what follows may take minutes, or fail
    readme.write(PAGE)
    return 0


def with_stages(results: Results, case: Stages, rounds: Sequence[Round], rows: int) -> Results:
    """`results` with what `stages` found of a case, in place of what was there of the same task."""
    kept = [one for one in results.measurements if one.point != case.task]
    found = sorted([*kept, *measurements(SCENARIO, rounds)], key=attrgetter("point"))
    models = {**results.details["models"], case.task: {"model": case.model, "rows": rows}}
    details = {**results.details, "models": dict(sorted(models.items()))}
    now = environment()
    details["earlier"] = earlier(results, now, (task for task in details["models"] if task != case.task))
    return Results(now, results.options, tuple(found), details)


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
        from export.__main__ import export
        from export.recipe import Recipe

        with contextlib.redirect_stdout(io.StringIO()):
            export(Recipe(str(case.make(root / "model")), case.task, root / "bundle"))
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


def tasks_table() -> str:
    """What there is."""
    from engine.tasks import TASKS, task_class

    rows = [(f"`{tag}`", task_class(tag).auto_class, task_class(tag).summary) for tag in TASKS]
    return markdown(("task", "model class", "what it does"), rows, aligned=False)


def architectures_table() -> str:
    """What the tests export."""
    found: dict[str, list[str]] = {}
    for case in zoo.cases():
        found.setdefault(case.task, []).append(case.architecture)
    rows = [(f"`{task}`", ", ".join(sorted(found[task]))) for task in sorted(found)]
    return markdown(("task", "architectures"), rows, aligned=False)


def stages_table() -> str:
    """Where a job's time goes."""
    results = read(RESULTS)
    why = {case.task: case.why for case in zoo.stages()}
    rows = []
    for task, times in sorted(microseconds(results).items()):
        cells = [f"{times[name]:.0f}" for name in _STAGES]
        share = outside(times)
        model = results.details["models"][task]["model"]
        rows.append((f"`{task}`", model, *cells, f"{share:.1%}", why[task] if share > SHARE else ""))
    return markdown(("task", "model", *_STAGES, "outside the engine", "why"), rows, aligned=False)
