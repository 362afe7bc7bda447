"""From results files to settings: batch ladder, concurrency and precision for a latency target, and what that costs.

Everything comes from measurements of one machine, for a price is of one machine. The rules:

- A precision is out when its loss is over --max-accuracy-loss, or was not measured.
- A batch is in the ladder when two runs of it, by their p99, fit into the target: a job that arrives while one runs
  waits for its end, then for its own. A batch that brings no more rows a second than a smaller one is left out.
- The rate of a worker is the highest measured under load (`load`, `peers`) with a p99 within the target; closed
  loops count only without open ones, for real callers do not wait for each other. A load in which a job failed does
  not count.
- Concurrency is the closed loop's clients, or, of an open loop, rate times p99 (Little's law with the slow jobs in it);
  no more than the worker that was measured took at once.
- Without a load measurement the engine's rows a second stand in, and the answer says so.
- What belongs together has the same engine and precision, whatever the commands called it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import arguments
from benchmarks.candidates import (
    ALONE,
    MOST_AT_ONCE,
    MOST_ROWS,
    Grid,
    Point,
    Setting,
    grid_of,
    our_settings,
    points_of,
    setting_of,
)
from benchmarks.measure import figure
from benchmarks.report.stored import Source, Stored, stored

_GAIN = 1.03  # a larger batch must bring so many times the rows a second


@dataclass(frozen=True)
class Asked:
    """What the user wants."""

    p99_ms: float
    price_per_hour: float
    length: int | None = None
    rate: float | None = None
    max_loss: float | None = None
    model: str | None = None
    """Of the random encoders in `latency`."""


@dataclass(frozen=True)
class Recommendation:
    """What to set, and where it comes from."""

    machine: str
    target: str
    engine: str
    precision: str
    ladder: tuple[int, ...]
    """Rows of the batches; empty where no grid was measured."""
    length: int | None
    """Tokens of the row of the grid that was looked at."""
    concurrency: int
    jobs_per_s: float
    """Of one worker, all the time busy."""
    p99_ms: float
    accuracy_loss: float | None
    cost_per_million: float
    workers: int | None
    """For the rate that was asked for."""
    cost_per_million_at_rate: float | None
    """With the idle share of so many workers."""
    measured: tuple[str, ...]
    """Which measurements it comes from, a sentence each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="results files of one machine")
    parser.add_argument(
        "--p99-ms", type=arguments.positive, required=True, metavar="MS", help="99 of 100 jobs take no longer"
    )
    parser.add_argument(
        "--price-per-hour", type=arguments.positive, required=True, metavar="PRICE", help="of one worker"
    )
    parser.add_argument(
        "--length", type=arguments.count, metavar="TOKENS", help="of a text (default: the longest measured)"
    )
    parser.add_argument(
        "--rate", type=arguments.positive, metavar="JOBS_PER_S", help="how many jobs come in; tells the workers"
    )
    parser.add_argument(
        "--max-accuracy-loss",
        type=arguments.positive,
        metavar="LOSS",
        help="1 - worst cosine with fp32, at most (default: any)",
    )
    parser.add_argument("--model", metavar="NAME", help="whose rows of `latency` to look at (default: `throughput`'s)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Print what to set; 1 when nothing measured meets the target. Raises ValueError for files that cannot be used."""
    known = stored(args.files)
    for sentence in known.unread:
        print(f"recommend: {sentence}", file=sys.stderr)
    machines = list(dict.fromkeys(source.machine for source in known.sources))
    if len(machines) != 1:
        found = "; ".join(machines) or "none"
        raise ValueError(f"a price is of one machine, and these files are of: {found}; name files of one")
    models = sorted({name for source in known.sources for name in _models(source)})
    if len(models) > 1:
        found = ", ".join(models)
        raise ValueError(f"a setting is of one model, and these files are of: {found}; name files of one")
    asked = Asked(args.p99_ms, args.price_per_hour, args.length, args.rate, args.max_accuracy_loss, args.model)
    found_or_why = recommend(known, asked)
    if isinstance(found_or_why, str):
        print(json.dumps({"error": found_or_why}) if args.json else found_or_why)
        return 1
    print(json.dumps(asdict(found_or_why), indent=1) if args.json else said(found_or_why, asked))
    return 0


def _models(source: Source) -> Iterator[str]:
    """What a file says that it measured: in its options, of a quick run in those of its parts, of `peers` with ours."""
    options = source.results.options
    parts = [options, *(part for part in options.values() if isinstance(part, Mapping))]
    ours = [one for name, one in source.results.environment.get("targets", {}).items() if name.startswith("ours")]
    return (str(one["model"]) for one in [*parts, *ours] if one.get("model"))


def recommend(known: Stored, asked: Asked) -> Recommendation | str:
    """The settings with the most jobs a second within the target, or a sentence that says what comes nearest."""
    losses = _losses(known)
    refused: list[str] = []
    points: list[Point] = []
    for setting in our_settings(known):
        loss, files = losses.get(setting, (None, ()))
        if asked.max_loss is not None and (loss is None or loss > asked.max_loss):
            why = "is in no file of `accuracy`" if loss is None else f"is {loss:.2g}"
            refused.append(f"{setting} is out: its accuracy loss {why}, allowed is {asked.max_loss:g}")
            continue
        for point in points_of(known, setting, asked.length, asked.model):
            if point.errors:
                refused.append(f"{point.where} is out: {point.errors} of {point.errors + point.jobs} jobs failed")
            else:
                points.append(point)
    fit = [point for point in points if point.p99_ms <= asked.p99_ms]
    if not fit:
        return _nothing(points, refused, asked)
    kind = min(point.order for point in fit)
    best = max((point for point in fit if point.order == kind), key=lambda point: point.jobs_per_s)
    grid = grid_of(known, best.setting, asked.length, asked.model)
    ladder = _ladder(grid, asked.p99_ms) if grid else ()
    loss, files = losses.get(best.setting, (None, ()))
    measured = [f"rate and p99: {best.where}", *(_ladder_comes_from(grid, asked) if grid else [])]
    measured += [f"accuracy: {', '.join(files)}"] if files else []
    measured += [*_beyond_what_was_taken(best), *_waiting(fit, best)]
    workers = math.ceil(asked.rate / best.jobs_per_s) if asked.rate else None
    return Recommendation(
        known.sources[0].machine,
        best.target,
        best.setting.engine,
        best.setting.precision,
        ladder,
        grid.tokens if grid else None,
        min(best.concurrency, best.taken, MOST_AT_ONCE),
        best.jobs_per_s,
        best.p99_ms,
        loss,
        cost_per_million(asked.price_per_hour, best.jobs_per_s),
        workers,
        cost_per_million(asked.price_per_hour * workers, asked.rate) if workers and asked.rate else None,
        (*measured, *refused),
    )


def _ladder_comes_from(grid: Grid, asked: Asked) -> Iterator[str]:
    yield f"ladder: {grid.where}"
    if asked.length is not None and grid.tokens < asked.length:
        yield f"length: no row of {asked.length} tokens was measured; the longest has {grid.tokens}, and runs sooner"
    if grid.too_large:
        batches = ", ".join(map(str, sorted(grid.too_large)))
        yield f"batches of {batches} rows are out: MAX_BATCH_ROWS takes {MOST_ROWS} at most"


def _beyond_what_was_taken(best: Point) -> Iterator[str]:
    if best.concurrency <= (taken := min(best.taken, MOST_AT_ONCE)):
        return
    if best.order == ALONE:
        yield f"concurrency: two batches are {best.concurrency} jobs, and MAX_CONCURRENCY takes {taken} at most"
        return
    more = "; `load` with MAX_CONCURRENCY set tells what more bring" if taken < MOST_AT_ONCE else ""
    yield f"concurrency: {best.concurrency} jobs were under way, of which the worker took {taken} at once{more}"


def _waiting(fit: Sequence[Point], best: Point) -> list[str]:
    """Other precisions that look faster, but by a measurement that counts for less."""
    faster = [point for point in fit if point.order > best.order and point.jobs_per_s > best.jobs_per_s]
    by_setting = {point.setting: point for point in sorted(faster, key=lambda point: point.jobs_per_s)}
    return [
        f"{setting} may be faster ({figure(point.jobs_per_s)} jobs/s: {point.where})"
        for setting, point in by_setting.items()
        if setting != best.setting
    ]


def cost_per_million(price_per_hour: float, jobs_per_s: float) -> float:
    """In the price's currency."""
    return price_per_hour / 3600 / jobs_per_s * 1e6


def said(found: Recommendation, asked: Asked) -> str:
    """The recommendation in lines."""
    loss = "" if found.accuracy_loss is None else f", accuracy loss {found.accuracy_loss:.1e}"
    lines = [
        f"on {found.machine}, for p99 <= {asked.p99_ms:g} ms",
        f"engine          {found.engine} (ENGINE={found.engine})",
        f"precision       {found.precision}{loss}",
    ]
    if found.ladder:
        ladder = ",".join(map(str, found.ladder))
        at = f" at {found.length} tokens" if found.length else ""
        lines.append(f"batch ladder    {ladder}{at} (--batches {ladder}, MAX_BATCH_ROWS={found.ladder[-1]})")
    elif found.length is not None:
        lines.append(
            f"batch ladder    1: two runs of no measured batch fit at {found.length} tokens (MAX_BATCH_ROWS=1)"
        )
    else:
        lines.append(
            "batch ladder    not known: no run of `latency` or `throughput` of this engine and precision is among the "
            "files"
        )
    lines += [
        f"concurrency     {found.concurrency} (MAX_CONCURRENCY={found.concurrency})",
        f"one worker      {figure(found.jobs_per_s)} jobs/s with p99 {figure(found.p99_ms)} ms",
        f"cost            {figure(found.cost_per_million)} per million requests, always busy",
    ]
    if found.workers is not None and found.cost_per_million_at_rate is not None:
        lines.append(
            f"for {asked.rate:g} jobs/s  {found.workers} worker{'s' * (found.workers > 1)}, "
            f"{figure(found.cost_per_million_at_rate)} per million requests"
        )
    return "\n".join([*lines, *(f"from            {sentence}" for sentence in found.measured)])


def _nothing(points: Sequence[Point], refused: Sequence[str], asked: Asked) -> str:
    target = f"p99 <= {asked.p99_ms:g} ms"
    if not points:
        without = (
            "; ".join(refused)
            or "there is no measurement of `load`, `peers`, `latency` or `throughput` of this worker, with its p99"
        )
        return f"Nothing meets {target}: {without}."
    nearest = min(points, key=lambda point: point.p99_ms)
    reached = f"{nearest.setting} with p99 {figure(nearest.p99_ms)} ms"
    return "; ".join([f"Nothing meets {target}; the nearest is {reached} ({nearest.where})", *refused]) + "."


def _ladder(grid: Grid, p99_ms: float) -> tuple[int, ...]:
    taken: list[int] = []
    best = 0.0
    for batch, (p50, p99) in sorted(grid.runs.items()):
        rate = batch / p50
        if 2 * p99 <= p99_ms and rate >= best * _GAIN:
            taken.append(batch)
            best = rate
    return tuple(taken)


def _losses(known: Stored) -> dict[Setting, tuple[float, tuple[str, ...]]]:
    """The worst of each setting, and the files that have one."""
    from benchmarks.report.losses import SCENARIO, losses

    found: dict[Setting, tuple[float, tuple[str, ...]]] = {}
    for one in losses(known.sources):
        setting = setting_of(one.source, SCENARIO, one.target)
        worst, files = found.get(setting, (0.0, ()))
        found[setting] = max(worst, one.loss), tuple(dict.fromkeys((*files, one.source.name)))
    return found
