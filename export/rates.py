"""Rows a second of graphs on this machine's CPU, side by side: the machine may be busy, so turns are taken."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.feed import run_rows
from engine.tensors import Row

if TYPE_CHECKING:
    from export.candidates import Candidate

_BATCH = 16
_TURNS = 4
_SECONDS = 10.0
"""After so long half of the turns are enough: the rates of a model whose turns take long vary less."""


def rates(candidates: Sequence[Candidate], rows: Sequence[Row]) -> list[float]:
    """Rows a second of each candidate, the best of a few turns; rows sorted by length, in batches of 16."""
    ordered = sorted(rows, key=lambda row: row.length)
    batches = [ordered[start : start + _BATCH] for start in range(0, len(ordered), _BATCH)]
    engines = [OnnxRuntimeEngine(one.view, one.graph, provider="cpu") for one in candidates]
    try:
        best = [float("inf")] * len(engines)
        for engine in engines:
            engine.warm_up()
        started = time.perf_counter()
        for turn in range(_TURNS + 1):
            if turn > _TURNS // 2 and time.perf_counter() - started > _SECONDS:
                break
            for place, engine in enumerate(engines):
                began = time.perf_counter()
                for batch in batches:
                    run_rows(engine, batch)
                if turn:  # the first one binds buffers
                    best[place] = min(best[place], time.perf_counter() - began)
        return [len(ordered) / seconds for seconds in best]
    finally:
        for engine in engines:
            engine.close()
