"""One allocation a tensor, one view a bucket. Rule: nothing is allocated after the first use of a bucket."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.bucket import Bucket, Ladder
from engine.tensors import Array, TensorSpec


class Buffers:
    """Host memory of the largest bucket; smaller buckets are contiguous views of its beginning."""

    def __init__(self, specs: Sequence[TensorSpec], buckets: Ladder) -> None:
        self._specs = tuple(specs)
        self._flat = {spec.name: np.zeros(_size(spec, buckets.largest), spec.dtype) for spec in specs}
        self._views: dict[Bucket, dict[str, Array]] = {}

    def at(self, bucket: Bucket) -> dict[str, Array]:
        """The views of `bucket`; the same objects at every call."""
        views = self._views.get(bucket)
        if views is None:
            views = {s.name: self._flat[s.name][: _size(s, bucket)].reshape(s.shape_at(bucket)) for s in self._specs}
            self._views[bucket] = views
        return views


def _size(spec: TensorSpec, bucket: Bucket) -> int:
    return int(np.prod(spec.shape_at(bucket), dtype=np.int64))
