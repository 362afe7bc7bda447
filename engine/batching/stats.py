"""Counts and recent durations of a worker, for the health reply. Rule: cheap to record, computed only when asked."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from functools import partial
from typing import Any

_RECENT = 1000  # samples a stage: percentiles of what happened lately, in bounded memory


class Stats:
    """What engine threads and a handler record, and whoever reports it reads meanwhile."""

    def __init__(self) -> None:
        self.rows = 0
        self.tokens = 0
        """Of the rows themselves."""
        self.tokens_computed = 0
        """Of the buckets that they ran in, padding included."""
        self.batch_sizes: Counter[int] = Counter()
        self.lanes = 0
        """Engines that were opened to run batches side by side (lanes.py), of all graphs."""
        self._stages: defaultdict[str, deque[float]] = defaultdict(partial(deque, maxlen=_RECENT))
        self._lock = threading.Lock()

    def batch(self, rows: int, tokens: int, tokens_computed: int) -> None:
        """A batch of `rows` rows, `tokens` long together, has run in a bucket of `tokens_computed`."""
        with self._lock:
            self.rows += rows
            self.tokens += tokens
            self.tokens_computed += tokens_computed
            self.batch_sizes[rows] += 1

    def opened(self, lanes: int) -> None:
        """`lanes` more engines may run side by side."""
        with self._lock:
            self.lanes += lanes

    def stage(self, name: str, seconds: float) -> None:
        """A stage took `seconds`."""
        with self._lock:
            self._stages[name].append(seconds)

    def summary(self) -> dict[str, Any]:
        """Rows, tokens without and with padding, batches by size, lanes, and percentiles of the stages in ms."""
        with self._lock:  # held for the copies alone
            rows, tokens, computed = self.rows, self.tokens, self.tokens_computed
            sizes = sorted(self.batch_sizes.items())
            stages = {name: list(samples) for name, samples in self._stages.items()}
        return {
            "rows_served": rows,
            "tokens_served": tokens,
            "tokens_computed": computed,
            "batches_run": sum(count for _, count in sizes),
            "rows_per_batch": {str(size): count for size, count in sizes},
            "lanes": self.lanes,
            "stages_ms": {name: _percentiles(samples) for name, samples in stages.items()},
        }


def _percentiles(samples: list[float]) -> Mapping[str, float]:
    samples.sort()
    return {
        f"p{share}": round(samples[min(len(samples) - 1, len(samples) * share // 100)] * 1e3, 3)
        for share in (50, 90, 99)
    }
