"""GPU rows beside what was published: NVIDIA's demo/BERT and others, for orientation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import figure
from benchmarks.report import targets
from benchmarks.report.plot import INK, SOFT, Absent, Canvas, Plot, logarithmic
from benchmarks.report.plots.latency import SCENARIO, Row, latency_rows
from benchmarks.report.stored import CPU, Stored
from benchmarks.rounds import Shape, plain

_NAME, _TITLE = "published", "On a GPU, beside published figures"
PUBLISHED = Path(__file__).parents[2] / "published.json"


@dataclass(frozen=True)
class _Pair:
    """Ours and theirs at one shape."""

    shape: Shape
    label: str
    target: str
    ms: float
    published: Sequence[tuple[str, float]]
    """GPU and ms."""


def plot(known: Stored) -> Plot | Absent:
    """See the top."""
    found = _pairs(known)
    if not found:
        return Absent(_NAME, _TITLE, "make gpu OUT=build/gpu-results (on a GPU machine)")
    sources = json.loads(PUBLISHED.read_text())["sources"]
    gpus = list(dict.fromkeys(gpu for pair in found for gpu, _ in pair.published))
    return Plot(
        _NAME,
        _TITLE,
        "Filled dots are this worker's, hollow ones published for other GPUs, in fp16 and without host copies: they "
        "tell the order of magnitude to expect, no more. Left is faster.",
        "; ".join(f"{_said(pair.shape)}: {pair.label} {figure(pair.ms, 'ms')}" for pair in found) + ".",
        ("", "", "ms", *(f"{gpu}, published" for gpu in gpus)),
        [
            [_said(pair.shape), pair.label, figure(pair.ms), *(figure(dict(pair.published).get(gpu)) for gpu in gpus)]
            for pair in found
        ],
        lambda canvas: _draw(canvas, found),
        "published: " + "; ".join(sources),
    )


def _pairs(known: Stored) -> list[_Pair]:
    """Of a GPU's rows the engine alone, for copies are not in what is published; with copies where that is all."""
    published = json.loads(PUBLISHED.read_text())["rows"]
    rows = [row for row in latency_rows(known) if _on_a_gpu(row)]
    alone = {(row.source.name, row.shape) for row in rows if plain(row.target) == "ours-alone"}
    made = []
    for row in rows:
        who = plain(row.target)
        if who != "ours-alone" and (who != "ours" or (row.source.name, row.shape) in alone):
            continue
        key = row.shape.of, row.shape.tokens, row.shape.batch
        beside = [(one["gpu"], one["ms"]) for one in published if (one["model"], one["seq"], one["batch"]) == key]
        if beside:
            made.append(_Pair(row.shape, f"{row.label}, {row.source.machine}", row.target, row.p50_ms, beside))
    return made


def _on_a_gpu(row: Row) -> bool:
    """A GPU's machine has a CPU as well: `latency --cpu` measures it."""
    on_gpu = bool(row.source.results.environment.get("gpu"))
    return on_gpu and row.source.engine(SCENARIO, row.target) != CPU


def _said(place: Shape) -> str:
    return f"{place.of}, {place.tokens} tokens, batch {place.batch}"


def _draw(canvas: Canvas, found: Sequence[_Pair]) -> None:
    places = {place: row for row, place in enumerate(dict.fromkeys(pair.shape for pair in found))}
    (axes,) = canvas.axes((2.6 if canvas.narrow else 1.6) + (0.5 if canvas.narrow else 0.3) * len(places))
    markers = dict(zip(dict.fromkeys(gpu for pair in found for gpu, _ in pair.published), "osD^vPX", strict=False))
    for pair in found:
        for gpu, ms in pair.published:
            axes.plot(ms, places[pair.shape], markers[gpu], color=SOFT.light, fillstyle="none", markersize=6)
        axes.plot(pair.ms, places[pair.shape], "o", color=targets.colour(pair.target).light, markersize=8)
    for label, target in dict.fromkeys((pair.label, pair.target) for pair in found):
        axes.plot([], [], "o", color=targets.colour(target).light, markersize=8, label=label)
    for gpu, marker in markers.items():
        axes.plot([], [], marker, color=SOFT.light, fillstyle="none", markersize=6, label=f"{gpu} (published)")
    axes.set_xscale("log")
    logarithmic(axes.xaxis, coarse=canvas.narrow)
    axes.set_yticks(
        list(places.values()), [_said(place).replace(", ", ",\n" if canvas.narrow else ", ", 1) for place in places]
    )
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlabel("ms")
    canvas.figure.legend(
        loc="outside upper center", ncols=1 if canvas.narrow else 3, labelcolor=INK.light, handletextpad=0.2
    )
