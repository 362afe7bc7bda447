"""What the health reply counts: how jobs ended."""

import asyncio
import threading
from pathlib import Path

import pytest

from engine.backends.fake import FakeEngine
from engine.batcher import Batcher
from engine.bundle import open_bundle
from engine.config import Settings
from engine.tasks import load_task
from handler.handler import Handler


async def test_jobs_are_counted_by_how_they_ended(small_bundle: Path):
    bundle = open_bundle(small_bundle)
    engine = FakeEngine.from_bundle(bundle)
    batcher = Batcher(engine, max_rows=32, max_tokens=0, max_queued=10)
    handler = Handler(load_task(bundle, Settings()), batcher, dict)
    for payload in ({"text": "a"}, {"texts": ["a", "b"]}, {"health": True}, {"text": 1}, {"texts": ["a"] * 11}):
        await handler.handle({"input": payload})
    assert (handler.jobs_done, handler.jobs_failed) == (3, 2)
    begun, gate = threading.Event(), threading.Event()

    def hold(bucket: object) -> None:
        begun.set()
        gate.wait(10)

    engine.on_run = hold
    cancelled = asyncio.create_task(handler.handle({"input": {"texts": ["a", "b"]}}))
    assert await asyncio.to_thread(begun.wait, 10)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert (handler.jobs_done, handler.jobs_failed) == (3, 2)
    gate.set()
    batcher.close()
