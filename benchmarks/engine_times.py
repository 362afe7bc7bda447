"""How long one engine takes: alone, with its copies, and behind handler(job). One call after the other, in ms."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.bert_bundle import text_of
from engine.backends.base import Engine
from engine.batcher import Batcher
from engine.bucket import Bucket
from engine.bundle import Bundle
from engine.config import Limits
from engine.tasks import load_task
from handler.handler import Handler

_WARM_UP = 10
_FEWEST = 20
_VOCABULARY = 40  # ids that every model knows


class Times:
    """Measures `engine` for at most `seconds` a figure, and at most `most` calls."""

    def __init__(self, bundle: Bundle, engine: Engine, *, seconds: float, most: int) -> None:
        self._engine = engine
        self._bundle = bundle
        self._seconds, self._most = seconds, most

    def alone(self, bucket: Bucket) -> list[float] | None:
        """The run without copies, as one CUDA graph; None where the engine does not run on a GPU by itself.

        Reaches into the engine, whose own graph has the copies in it; nobody else needs the one without.
        """
        engine: Any = self._engine
        if not hasattr(engine, "_runs"):
            return None
        self._fill(bucket)
        engine.run(bucket)  # the inputs are on the device now, and stay there
        cuda, execution_context = engine._cuda, engine._runs[bucket].context.handle
        with cuda.active("measuring"):
            captured = cuda.capture(lambda: execution_context.execute_async_v3(cuda.stream))

            def run() -> None:
                cuda.replay(captured)
                cuda.wait_all()

            return self._timed(run)

    def with_copies(self, bucket: Bucket) -> list[float]:
        """`Engine.run`: inputs from host memory, outputs back in it."""
        self._fill(bucket)
        return self._timed(lambda: self._engine.run(bucket))

    def through_handler(self, bucket: Bucket) -> list[float]:
        """`handler(job)`: texts in, vectors out, and the batcher between them."""
        return asyncio.run(self._through_handler(bucket))

    async def _through_handler(self, bucket: Bucket) -> list[float]:
        batcher = Batcher(_Kept(self._engine), max_rows=bucket.batch, max_tokens=bucket.tokens, max_queued=10_000)
        handler = Handler(load_task(self._bundle, replace(Limits(), max_items=10_000)), batcher, dict)
        texts = [text_of(bucket.length, seed) for seed in range(bucket.batch)]
        job = {"id": "job", "input": {"texts": texts}}
        took: list[float] = []
        try:
            end = time.perf_counter() + self._seconds
            while len(took) < self._most + _WARM_UP and (time.perf_counter() < end or len(took) < _FEWEST + _WARM_UP):
                begin = time.perf_counter()
                reply = await handler.handle(job)
                took.append((time.perf_counter() - begin) * 1e3)
                if "error" in reply or reply["usage"]["total_tokens"] != bucket.tokens:
                    raise RuntimeError(f"the handler answered {str(reply)[:200]}")
        finally:
            await asyncio.to_thread(batcher.close)
        return took[_WARM_UP:]

    def _fill(self, bucket: Bucket) -> None:
        rng = np.random.default_rng(0)
        for name, values in self._engine.feeds(bucket).items():
            values[:] = rng.integers(0, _VOCABULARY, values.shape) if name == "input_ids" else name == "attention_mask"

    def _timed(self, run: Callable[[], object]) -> list[float]:
        for _ in range(_WARM_UP):
            run()
        took: list[float] = []
        end = time.perf_counter() + self._seconds
        while len(took) < self._most and (time.perf_counter() < end or len(took) < _FEWEST):
            begin = time.perf_counter()
            run()
            took.append((time.perf_counter() - begin) * 1e3)
        return took


class _Kept:
    """An engine that stays open when the batcher that ran it is closed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        """Left to whoever opened it."""
