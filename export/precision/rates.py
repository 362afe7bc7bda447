"""Rows a second of graphs on this machine's CPU, side by side: the machine may be busy, so turns are taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.batching.feed import run_rows
from engine.tensors import Row

if TYPE_CHECKING:
    from export.precision.candidates import Candidate

_BATCH = 16
_TURNS = 4
_SECONDS = 10.0
"""After so long half of the turns are enough: the rates of a model whose turns take long vary less."""

_MOST_TURNS, _MOST_SECONDS = 12, 20.0
"""Where turns disagree, which on a quiet machine they seldom do. Simulated, with 7 turns of 10 up to twice as long as
they should be: of two graphs, one 1.25 times as fast as the other, the best of 4 turns finds 1.2 times or more in 82 of
100 cases, and with turns added up to this many in 96."""


def rates(
    candidates: Sequence[Candidate],
    rows: Sequence[Row],
    verdict: Callable[[Sequence[float]], object] | None = None,
) -> list[float]:
    """Rows a second of each candidate, the best of a few turns; rows sorted by length, in batches of 16.

    `verdict` is what will be concluded of them: turns are added, up to a limit, where they do not all give the same.
    """
    ordered = sorted(rows, key=lambda row: row.length)
    batches = [ordered[start : start + _BATCH] for start in range(0, len(ordered), _BATCH)]
    engines = [OnnxRuntimeEngine(one.view, one.graph) for one in candidates]

    def rate(engine: OnnxRuntimeEngine) -> float:
        began = time.perf_counter()
        for batch in batches:
            run_rows(engine, batch)
        return len(ordered) / (time.perf_counter() - began)

    try:
        for engine in engines:
            engine.warm_up()
        return best(lambda: [rate(engine) for engine in engines], verdict or (lambda rates: None))
    finally:
        for engine in engines:
            engine.close()


def best(turn: Callable[[], Sequence[float]], verdict: Callable[[Sequence[float]], object]) -> list[float]:
    """The best that each candidate reaches in any turn, but for the first one, which binds buffers."""
    began = time.perf_counter()
    turn()
    turns: list[Sequence[float]] = []
    while True:
        seconds = time.perf_counter() - began
        agree = len({verdict(rates) for rates in turns}) == 1
        enough = _TURNS if seconds < _SECONDS else _TURNS // 2
        if len(turns) >= enough and (agree or len(turns) >= _MOST_TURNS or seconds > _MOST_SECONDS):
            return [max(of_one) for of_one in zip(*turns, strict=True)]
        turns.append(turn())
