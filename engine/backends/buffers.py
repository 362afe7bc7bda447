"""Where the tensors of a bucket lie. Rule: memory is allocated at load, and never after the first use of a bucket.

Buffers         for engines on the CPU: one allocation a tensor, one view a bucket
DeviceBuffers   for engines on a GPU: all inputs of a bucket side by side, all outputs side by side, so that one
                copy feeds a run and one empties it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from engine.bucket import Bucket, Ladder
from engine.tensors import Array, TensorSpec

ALIGNMENT = 256
"""Bytes. TensorRT wants every tensor's address to be a multiple of this."""
MOST_VIEWS = 512
"""Of the buckets, for those of an engine that takes any length are thousands: their views would hold 1 kB each, inputs
and outputs together. The oldest are made anew when they are needed again, in some us."""


class Buffers:
    """Host memory of the largest bucket; smaller buckets are contiguous views of its beginning."""

    def __init__(self, specs: Sequence[TensorSpec], buckets: Ladder) -> None:
        self._specs = tuple(specs)
        self._flat = {spec.name: np.zeros(_size(spec, buckets.largest), spec.dtype) for spec in specs}
        self._views: dict[Bucket, dict[str, Array]] = {}

    def at(self, bucket: Bucket) -> dict[str, Array]:
        """The views of `bucket`; the same objects at every call, until MOST_VIEWS other buckets were asked for."""
        views = self._views.get(bucket)
        if views is None:
            if len(self._views) == MOST_VIEWS:
                del self._views[next(iter(self._views))]
            views = {s.name: self._flat[s.name][: _size(s, bucket)].reshape(s.shape_at(bucket)) for s in self._specs}
            self._views[bucket] = views
        return views


class Layout:
    """Tensors side by side in one block, each at a multiple of ALIGNMENT. Pure arithmetic."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.specs = tuple(specs)

    def offsets(self, bucket: Bucket) -> dict[str, int]:
        """Where each tensor of `bucket` begins, in bytes."""
        found, end = {}, 0
        for spec in self.specs:
            found[spec.name] = end
            end = _aligned(end + _bytes(spec, bucket))
        return found

    def size(self, bucket: Bucket) -> int:
        """Bytes of the whole block at `bucket`, a multiple of ALIGNMENT."""
        return sum(_aligned(_bytes(spec, bucket)) for spec in self.specs)

    def views(self, block: Array, bucket: Bucket) -> dict[str, Array]:
        """The tensors of `bucket` in `block`, an array of bytes."""
        offsets = self.offsets(bucket)
        return {
            s.name: block[offsets[s.name] :][: _bytes(s, bucket)].view(s.dtype).reshape(s.shape_at(bucket))
            for s in self.specs
        }


class Memory(Protocol):
    """What DeviceBuffers allocate from; cuda.py's Cuda."""

    def device(self, size: int) -> int:
        """The address of `size` bytes on the device."""
        ...

    def pinned(self, size: int) -> Array:
        """`size` bytes of page-locked host memory."""
        ...


class DeviceBuffers:
    """One arena on the device and one, page-locked, on the host, both large enough for every bucket.

    The host's holds `slots` buffer sets. The device's holds one: in a single stream the copies and runs of all slots
    follow each other, so a second would never be used beside the first, and every bucket's tensors keep one address.
    """

    def __init__(
        self,
        memory: Memory,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        buckets: Ladder,
        slots: int,
    ) -> None:
        self._in, self._out = Layout(inputs), Layout(outputs)
        self._in_size, out_size = (max(map(side.size, buckets)) for side in (self._in, self._out))
        set_size = self._in_size + out_size
        self._address = memory.device(set_size)
        arena = memory.pinned(slots * set_size)
        self._sets = [arena[slot * set_size :][:set_size] for slot in range(slots)]
        self._feeds: dict[tuple[Bucket, int], dict[str, Array]] = {}
        self._results: dict[tuple[Bucket, int], dict[str, Array]] = {}

    def feeds(self, bucket: Bucket, slot: int) -> dict[str, Array]:
        """The inputs of `bucket` in buffer set `slot`; the same objects at every call."""
        views = self._feeds.get((bucket, slot))
        if views is None:
            views = self._feeds[bucket, slot] = self._in.views(self.host_in(bucket, slot), bucket)
        return views

    def results(self, bucket: Bucket, slot: int) -> dict[str, Array]:
        """The outputs of `bucket` in buffer set `slot`; the same objects at every call."""
        views = self._results.get((bucket, slot))
        if views is None:
            views = self._results[bucket, slot] = self._out.views(self.host_out(bucket, slot), bucket)
        return views

    def host_in(self, bucket: Bucket, slot: int) -> Array:
        """The bytes that one copy brings to `device_in`."""
        return self._sets[slot][: self._in.size(bucket)]

    def host_out(self, bucket: Bucket, slot: int) -> Array:
        """The bytes that one copy fetches from `device_out`."""
        return self._sets[slot][self._in_size :][: self._out.size(bucket)]

    @property
    def device_in(self) -> int:
        """Address of the inputs, whatever the bucket."""
        return self._address

    @property
    def device_out(self) -> int:
        """Address of the outputs, whatever the bucket."""
        return self._address + self._in_size

    def addresses(self, bucket: Bucket) -> Mapping[str, int]:
        """Tensor -> address on the device."""
        found = {name: self.device_in + offset for name, offset in self._in.offsets(bucket).items()}
        return found | {name: self.device_out + offset for name, offset in self._out.offsets(bucket).items()}


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _bytes(spec: TensorSpec, bucket: Bucket) -> int:
    return _size(spec, bucket) * int(np.dtype(spec.dtype).itemsize)


def _size(spec: TensorSpec, bucket: Bucket) -> int:
    return int(np.prod(spec.shape_at(bucket), dtype=np.int64))
