"""How long one engine takes: alone, with its copies, and behind handler(job). One call after the other, in ms."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from benchmarks.bert_bundle import text_of
from engine.backends.base import Engine
from engine.batching.batcher import Batcher
from engine.bucket import Bucket
from engine.bundle import Bundle
from engine.config import Limits
from engine.errors import EngineError
from engine.tasks import load_task
from handler.handler import Handler

_VOCABULARY = 40  # ids that every model knows


class Took(NamedTuple):
    """Each run in ms, and the seconds from the first one's start to the last one's end."""

    ms: list[float]
    seconds: float


def timed(run: Callable[[], object], warm_up_ms: float, duration_s: float, iterations: int) -> Took:
    """`run` again and again: for `warm_up_ms` uncounted, then for `duration_s` and `iterations`, what is longer."""
    end = time.perf_counter() + warm_up_ms / 1e3
    run()
    while time.perf_counter() < end:
        run()
    took: list[float] = []
    first = begin = time.perf_counter()
    while begin < first + duration_s or len(took) < iterations:
        run()
        now = time.perf_counter()
        took.append((now - begin) * 1e3)
        begin = now
    return Took(took, begin - first)


async def timed_awaiting(
    run: Callable[[], Awaitable[object]], warm_up_ms: float, duration_s: float, iterations: int
) -> Took:
    """`timed` for what is awaited, all of it on one event loop: starting one costs more than a small run."""
    end = time.perf_counter() + warm_up_ms / 1e3
    await run()
    while time.perf_counter() < end:
        await run()
    took: list[float] = []
    first = begin = time.perf_counter()
    while begin < first + duration_s or len(took) < iterations:
        await run()
        now = time.perf_counter()
        took.append((now - begin) * 1e3)
        begin = now
    return Took(took, begin - first)


class Times:
    """Measures `engine` as `timed` does, run as trtexec's switches say. `cuda_graph` False takes its captures away."""

    def __init__(self, bundle: Bundle, engine: Engine, *, cuda_graph: bool = True, **limits: float) -> None:
        self._engine = engine
        self._bundle = bundle
        self._cuda_graph = cuda_graph
        self._limits: Any = limits
        if not cuda_graph:
            for run in getattr(engine, "_runs", {}).values():
                run.captures = []  # the engine then queues copies and kernels one by one

    def alone(self, bucket: Bucket) -> Took | None:
        """The run without copies; None where the engine does not run on a GPU by itself.

        Reaches into the engine, whose own graph has the copies in it; nobody else needs the one without.
        """
        engine: Any = self._engine
        if not hasattr(engine, "_runs"):
            return None
        self._fill(bucket)
        engine.run(bucket)  # the inputs are on the device now, and stay there
        cuda, execution_context = engine._cuda, engine._runs[bucket].context.handle
        with cuda.active("measuring"):
            done = cuda.event()

            def enqueue() -> None:
                if not execution_context.execute_async_v3(cuda.stream):  # else a refusal would be the fastest run
                    raise EngineError(f"TensorRT does not run {bucket}")

            start = enqueue
            if self._cuda_graph:
                captured = cuda.capture(enqueue)
                start = lambda: cuda.replay(captured)  # noqa: E731

            def run() -> None:
                start()
                cuda.record(done)
                cuda.wait(done)

            return timed(run, **self._limits)

    def with_copies(self, bucket: Bucket) -> Took:
        """`Engine.run`: inputs from host memory, outputs back in it."""
        self._fill(bucket)
        return timed(lambda: self._engine.run(bucket), **self._limits)

    def through_handler(self, bucket: Bucket) -> Took:
        """`handler(job)`: texts in, vectors out, and the batcher between them."""
        batcher = Batcher(_Kept(self._engine), max_rows=bucket.batch, max_tokens=bucket.tokens, max_queued=10_000)
        handler = Handler(load_task(self._bundle, replace(Limits(), max_items=10_000)), batcher, dict)
        job = {"id": "job", "input": {"texts": [text_of(bucket.length, seed) for seed in range(bucket.batch)]}}

        async def run() -> None:
            reply = await handler.handle(job)
            if "error" in reply or reply["usage"]["total_tokens"] != bucket.tokens:
                raise RuntimeError(f"the handler answered {str(reply)[:200]}")

        async def measured() -> Took:
            try:
                return await timed_awaiting(run, **self._limits)
            finally:
                await asyncio.to_thread(batcher.close)

        return asyncio.run(measured())

    def _fill(self, bucket: Bucket) -> None:
        rng = np.random.default_rng(0)
        for name, values in self._engine.feeds(bucket).items():
            values[:] = rng.integers(0, _VOCABULARY, values.shape) if name == "input_ids" else name == "attention_mask"


class _Kept:
    """An engine that stays open when the batcher that ran it is closed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        """Left to whoever opened it."""
