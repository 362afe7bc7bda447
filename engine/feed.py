"""From rows to an engine's buffers and back: the only place that pads, and the only one that copies results out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.tensors import fill

if TYPE_CHECKING:
    from engine.backends.base import Engine
    from engine.tensors import Arrays, Row


def run_rows(engine: Engine, rows: Sequence[Row]) -> list[Arrays]:
    """Run `rows` as one batch in the smallest bucket that holds them.

    Returns one mapping of output name to array (without the batch axis) a row; copies, so they outlive the next run.
    Raises ValueError when no bucket holds them, EngineError when the engine fails.
    """
    bucket = engine.buckets.fit(len(rows), max(row.length for row in rows))
    feeds = engine.feeds(bucket)
    for spec in engine.inputs:
        fill(feeds[spec.name], rows, spec)
    outputs = engine.run(bucket)
    return [{name: values[index].copy() for name, values in outputs.items()} for index in range(len(rows))]
