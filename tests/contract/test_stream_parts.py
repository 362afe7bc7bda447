"""A streamed job's parts: none larger than RunPod takes, as long as one row is not."""

import asyncio
from pathlib import Path

import orjson
import pytest

from engine.backends.fake import FakeEngine
from engine.batcher import Batcher
from engine.bundle import open_bundle
from engine.config import Settings
from engine.tasks import load_task
from handler.handler import Handler

TEXTS = [" ".join("abcdefgh"[: 1 + index % 8]) for index in range(150)]


@pytest.mark.parametrize(("limit", "sizes"), [(1_000_000, [64, 64, 22]), (3000, None), (10, [1] * 150)])
def test_parts_are_as_large_as_is_allowed(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, limit: int, sizes: list[int] | None
):
    monkeypatch.setattr("handler.handler._PART_BYTES", limit)
    bundle = open_bundle(small_bundle)
    batcher = Batcher(FakeEngine.from_bundle(bundle), max_rows=32, max_tokens=0, max_queued=10_000)
    handler = Handler(load_task(bundle, Settings()), batcher, dict)
    bodies: list[bytes] = []

    async def ask() -> bytes:
        whole = await handler.body({"input": {"texts": TEXTS}})
        assert await handler.body({"input": {"texts": TEXTS, "stream": True}}, bodies.append) == b'{"output":[]}'
        return whole

    whole = asyncio.run(ask())
    batcher.close()
    parts = [orjson.loads(body)["output"]["embeddings"] for body in bodies]
    assert [row for part in parts for row in part] == orjson.loads(whole)["output"]["embeddings"]
    if sizes is None:
        assert 1 < len(parts[0]) < 64
        assert max(map(len, bodies)) <= limit
    else:
        assert [len(part) for part in parts] == sizes
