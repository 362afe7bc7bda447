"""How long a bucket takes on the GPU that a plan was built on: what the worker chooses between plans by."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.backends.base import Engine
    from engine.bucket import Bucket

_WARM_UP_S = 0.1
"""For so long it runs before any run is timed: the GPU was idle while the CPU computed the reference, for seconds at
times, and has lowered its clock, which by a few short runs it does not raise again."""
_RUNS = 5, 100
"""At least and at most; between these, as many as fit into _SECONDS."""
_SECONDS = 0.1


def latency_us(engine: Engine, bucket: Bucket) -> int:
    """Microseconds of a run with its copies, the median, at least 1; of what stands in the buffers of `bucket`."""
    end = time.perf_counter() + _WARM_UP_S
    while time.perf_counter() < end:
        engine.run(bucket)
    least, most = _RUNS
    took: list[float] = []
    while len(took) < least or (len(took) < most and sum(took) < _SECONDS):
        begin = time.perf_counter()
        engine.run(bucket)
        took.append(time.perf_counter() - begin)
    return max(1, round(1e6 * statistics.median(took)))
