"""What the health reply counts: how jobs ended, in the stock loop's process. For ours see test_job_loop.py."""

import asyncio
import json
import threading
from pathlib import Path

import pytest

from engine.backends.fake import FakeEngine
from engine.batching.batcher import Batcher
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


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_that_runpod_would_refuse_is_an_error(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
):
    """The SDK would leave the job without an answer. It writes more bytes than our own loop does (its rp_http)."""
    bundle = open_bundle(small_bundle)
    batcher = Batcher(FakeEngine.from_bundle(bundle), max_rows=32, max_tokens=0, max_queued=100)
    handler, job = Handler(load_task(bundle, Settings()), batcher, dict), {"input": {"texts": ["a"], "stream": stream}}
    reply = await answers(handler, Settings(worker_loop="sdk"), Counts())(job)
    size = len(json.dumps(reply, ensure_ascii=False))
    for most, failed in ((size, 0), (size - 1, 1)):
        monkeypatch.setattr("handler.stock.LARGEST_REPLY", most)
        monkeypatch.setattr("engine.tasks.payload.LARGEST_REPLY", most)
        counts = Counts()
        found = await answers(handler, Settings(worker_loop="sdk"), counts)(job)
        assert counts.report() == {"jobs_done": 1 - failed, "jobs_failed": failed}
        assert await answers(handler, Settings(), Counts())(job) == reply  # a local mode's
    assert found["error"].startswith("invalid input: the answer would hold more than the ")
    assert found["error"].endswith(
        "; ask for fewer items at once, or for `encoding_format` base64 where the task has it"
    )
    batcher.close()
