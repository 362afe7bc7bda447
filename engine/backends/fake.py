"""A deterministic engine without a model, for users' tests and for measuring everything but the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Self

import numpy as np

from engine.backends.base import Engine
from engine.backends.buffers import Buffers
from engine.bucket import Bucket, Ladder, rungs
from engine.bundle import Bundle
from engine.tensors import Array, Arrays, TensorSpec


class FakeEngine(Engine):
    """Answers each row with numbers drawn from the row's own sum.

    So a row's answer depends on the row and on nothing beside it, padding included, as a real engine's should.
    `on_run` is called before every run with its bucket: tests sleep or raise in it.
    """

    overhead_tokens = 8
    best_tokens = 4096
    computes_in_caller = False

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        buckets: Ladder | None = None,
        slots: int = 1,
        lanes: int = 0,
        on_run: Callable[[Bucket], None] = lambda bucket: None,
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.buckets = buckets or Ladder(range(1, 33), rungs(512, 8))
        self.slots = slots
        self.lanes = lanes
        self.on_run = on_run
        self._in = [Buffers(self.inputs, self.buckets) for _ in range(slots)]
        self._out = [Buffers(self.outputs, self.buckets) for _ in range(slots)]
        self.running = 0
        """The slot of the run that `on_run` is called in."""
        self._started: dict[int, Bucket] = {}

    @classmethod
    def from_bundle(
        cls, bundle: Bundle, graph: str = "model", *, max_batch: int = 32, slots: int = 1, lanes: int = 0
    ) -> Self:
        """The stand-in for one graph of `bundle`."""
        found = bundle.manifest.graphs[graph]
        buckets = Ladder(range(1, max_batch + 1), rungs(bundle.manifest.max_length(graph), 8))
        return cls(found.inputs, found.outputs, buckets=buckets, slots=slots, lanes=lanes)

    def open_lanes(self) -> list[Self]:
        """Engines of the same kind, which call the same `on_run`."""
        kind = type(self)
        return [kind(self.inputs, self.outputs, buckets=self.buckets, on_run=self.on_run) for _ in range(self.lanes)]

    def feeds(self, bucket: Bucket, slot: int = 0) -> Arrays:
        """The input buffers of `bucket`."""
        return self._in[slot].at(bucket)

    def start(self, bucket: Bucket, slot: int = 0) -> None:
        """Remember what is to be run."""
        assert slot not in self._started, "a slot is finished before it is started again"
        self._started[slot] = bucket

    def finish(self, slot: int = 0) -> Arrays:
        """Outputs in [-1, 1): a fixed wave over the positions, shifted by the sum of the row."""
        bucket, self.running = self._started.pop(slot), slot
        self.on_run(bucket)
        spec = self.inputs[0]
        values = self._in[slot].at(bucket)[spec.name]
        real = (np.where(values == spec.pad, 0, values) if spec.pad else values).reshape(bucket.batch, -1)
        outputs = self._out[slot].at(bucket)
        for output in outputs.values():
            _wave(output, real.sum(axis=1, dtype=np.float64))
        return outputs


def _wave(output: Array, sums: Array) -> None:
    flat = output.reshape(len(output), -1)
    flat[:] = np.sin(sums[:, None] + _places(flat.shape[1]))


@lru_cache(maxsize=8)
def _places(count: int) -> Array:
    return np.arange(count) * 0.7
