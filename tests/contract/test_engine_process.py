"""What the worker's two processes say to each other, here at the two ends of a socket pair in one process."""

import asyncio
import gc
import socket
from pathlib import Path

import pytest

from engine.config import Settings
from handler.boot import boot
from handler.engine_client import EngineClient
from handler.engine_server import _Server
from handler.parts import AHEAD
from handler.timeline import Timeline

ROWS_OF_A_PART = 64


@pytest.fixture(autouse=True)
def _unfrozen() -> None:
    gc.unfreeze()


async def test_a_stream_that_is_taken_slowly_is_not_answered_further(small_bundle: Path):
    """Else the whole result would wait in memory for a platform that is slow."""
    worker = boot(Settings(bundle=small_bundle, engine="fake"), Timeline())
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(_Server(worker).run(theirs))
    client = EngineClient(ours, lambda why: None)
    await client.start()
    texts = ["a"] * (20 * ROWS_OF_A_PART)
    parts = client.stream({"id": "1", "input": {"texts": texts, "stream": True}})
    await anext(parts)
    served = -1
    while served < (served := worker.batcher.stats.rows):
        await asyncio.sleep(0.2)
    assert 0 < served <= (2 * AHEAD + 1) * ROWS_OF_A_PART < len(texts)
    assert len([part async for part in parts]) == 20
    client.close()
    await serving
    worker.batcher.close()
