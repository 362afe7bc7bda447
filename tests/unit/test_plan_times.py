"""How a bucket is timed for a plan's sidecar, on an engine and a clock that are made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.bucket import Bucket
from export.plans import times


class Gpu:
    """An engine and its clock: until it has been busy for 50 ms, a run takes four times `run_s`, its seconds."""

    def __init__(self, run_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run_s, self.now, self.busy_s, self.runs = run_s, 0.0, 0.0, 0
        monkeypatch.setattr(times, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def run(self, bucket: Bucket) -> dict[str, Any]:
        took = self.run_s if self.busy_s > 0.05 else 4 * self.run_s
        self.now += took
        self.busy_s += took
        self.runs += 1
        return {}


@pytest.mark.parametrize("run_s", [0.0001, 0.002, 0.4])
def test_a_gpu_that_was_idle_is_timed_at_its_full_clock(run_s: float, monkeypatch: pytest.MonkeyPatch):
    gpu = Gpu(run_s, monkeypatch)
    engine: Any = gpu
    assert times.latency_us(engine, Bucket(1, 16)) == round(1e6 * run_s)
    assert gpu.now < 0.5 + 9 * run_s
