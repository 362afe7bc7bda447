"""The table of the peers, from a results file: a line a target, and how many times better ours is than each."""

from __future__ import annotations

import math
import statistics

from benchmarks.measure import MISSING, figure, markdown, times
from benchmarks.report.compared import compare
from benchmarks.report.targets import name as target_name
from benchmarks.results_file import Results
from benchmarks.targets.catalogue import NAMES

_SCENARIO, _OURS = "peers", "ours"
_COLUMNS = (
    ("cold start", "first_answer_s", "exec to first answer"),
    ("idle", "p50_ms", "idle, p50"),
    ("1 client", "jobs_per_s", "1 client"),
    ("32 clients", "jobs_per_s", "32 clients"),
    ("32 clients", "p99_ms", "32 clients, p99"),
    ("bulk", "rows_per_s", "bulk"),
    ("memory", "pss_mb", "PSS"),
    ("stop", "sigterm_to_exit_s", "SIGTERM to exit"),
)
_WAYS = {
    "queue": "jobs cross the emulated endpoint's queue",
    "http": "over HTTP, without a queue in front",
    "pipe": "a library in a process of its own, asked over a pipe",
}


def table(results: Results) -> str:
    """Medians over the rounds, Markdown; in brackets how many times better ours was, the median of its rounds."""
    found = {one.target for one in results.of(_SCENARIO)}
    ways = results.details.get("ways", {})
    rows = [
        [_label(name, ways), *(_cell(results, name, point, metric) for point, metric, _ in _COLUMNS)]
        for name in NAMES
        if name in found
    ]
    lines = [markdown(["", *(label for _, _, label in _COLUMNS)], rows, aligned=False), ""]
    lines += [_footnote(results, ways), *_share(results)]
    return "\n".join(lines)


def _label(name: str, ways: dict[str, str]) -> str:
    marks = {"http": " ¹", "pipe": " ²"}
    return target_name(name) + marks.get(ways.get(name, ""), "")


def _cell(results: Results, name: str, point: str, metric: str) -> str:
    one = results.find((_SCENARIO, name, point, metric))
    if one is None:
        return MISSING
    if metric == "sigterm_to_exit_s" and math.isnan(one.median):
        return f"killed after {results.options['stop_timeout_s']:g} s"
    shown, mine = figure(one.median, one.unit), results.find((_SCENARIO, _OURS, point, metric))
    both = compare(mine, one) if mine and name != _OURS else None
    return f"{shown} ({times(both.ratio)})" if both else shown


def _footnote(results: Results, ways: dict[str, str]) -> str:
    sentences = ["In brackets: how many times better ours is, round by round."]
    used = set(ways.values())
    if "queue" in used:
        sentences.append(f"Without a mark: {_WAYS['queue']}.")
    for mark, way in (("¹", "http"), ("²", "pipe")):
        if way in used:
            sentences.append(f"{mark} {_WAYS[way]}.")
    return " ".join(sentences)


def _share(results: Results) -> list[str]:
    """How near ours comes to the floor, each load to its own."""
    told = []
    for point, metric in (("1 client", "jobs_per_s"), ("32 clients", "jobs_per_s"), ("bulk", "rows_per_s")):
        ours = results.find((_SCENARIO, _OURS, point, metric))
        if ours is not None and (ratios := results.ratios(ours)):
            told.append(f"{point} {statistics.median(ratios):.0%}")
    if not told:
        return []
    return [f"Of what onnxruntime and tokenizers alone do, ours reaches: {', '.join(told)}."]
