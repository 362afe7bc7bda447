"""What the health reply counts: how jobs ended, in the stock loop's process. For ours see test_job_loop.py."""

import asyncio
import threading
from pathlib import Path

import pytest

from engine.backends.fake import FakeEngine
from engine.batcher import Batcher
from engine.bundle import open_bundle
from engine.config import Settings
from engine.tasks import load_task
from handler.counts import Counts
from handler.handler import Handler
from handler.stock import answers


async def test_jobs_are_counted_by_how_they_ended(small_bundle: Path):
    bundle = open_bundle(small_bundle)
    engine = FakeEngine.from_bundle(bundle)
    batcher = Batcher(engine, max_rows=32, max_tokens=0, max_queued=100)
    handler, counts = Handler(load_task(bundle, Settings()), batcher, dict), Counts()
    answer = answers(handler, Settings(), counts)
    for payload in ({"text": "a"}, {"texts": ["a", "b"], "stream": True}, {"health": True}):
        await answer({"input": payload})
    assert counts.report() == {"jobs_done": 2, "jobs_failed": 0}
    failing = {"texts": [*["a"] * 64, "a " * 100], "truncate": False, "stream": True}
    for job in ({"input": {"text": 1}}, {"input": {"texts": ["a"] * 101}}, {}, {"input": failing}):
        assert "error" in await answer(job)
    assert counts.report() == {"jobs_done": 2, "jobs_failed": 4}
    begun, gate = threading.Event(), threading.Event()

    def hold(bucket: object) -> None:
        begun.set()
        gate.wait(10)

    engine.on_run = hold
    late = await answers(handler, Settings(job_timeout_s=0.5), counts)({"input": {"texts": ["a", "b"]}})
    assert begun.is_set()
    assert late["error"].startswith("worker fault: the job took longer than 0.5 s")
    assert counts.report() == {"jobs_done": 2, "jobs_failed": 5}
    cancelled = asyncio.create_task(answer({"input": {"texts": ["a", "b"]}}))
    while not batcher.queued:
        await asyncio.sleep(0.01)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert counts.report() == {"jobs_done": 2, "jobs_failed": 5}
    gate.set()
    batcher.close()
