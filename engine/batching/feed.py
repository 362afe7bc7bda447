"""From rows to an engine's buffers and back: the only place that pads, and the only one that copies results out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.tensors import fill

if TYPE_CHECKING:
    from engine.backends.base import Engine
    from engine.bucket import Bucket
    from engine.tensors import Arrays, Row


def load(engine: Engine, rows: Sequence[Row], slot: int = 0) -> Bucket:
    """Write `rows` into the buffers of `slot`, of the smallest bucket that holds them; that bucket.

    Raises ValueError when none does.
    """
    bucket = engine.buckets.fit(len(rows), max(row.length for row in rows))
    feeds = engine.feeds(bucket, slot)
    for spec in engine.inputs:
        fill(feeds[spec.name], rows, spec)
    return bucket


def unload(outputs: Arrays, count: int) -> list[Arrays]:
    """The first `count` rows of a run: one mapping of output name to array (without the batch axis) each.

    Copies, so they outlive the next run.
    """
    return [{name: values[index].copy() for name, values in outputs.items()} for index in range(count)]


def run_rows(engine: Engine, rows: Sequence[Row], slot: int = 0) -> list[Arrays]:
    """Run `rows` as one batch; their outputs as `unload` gives them.

    Raises ValueError when no bucket holds them, EngineError when the engine fails.
    """
    engine.start(load(engine, rows, slot), slot)
    return unload(engine.finish(slot), len(rows))
