"""A bundle behind handler(job), in this process: the worker's own code on real weights, without RunPod around it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.batching.batcher import Batcher
from engine.batching.router import Router
from engine.batching.stats import Stats
from engine.bundle import open_bundle
from engine.config import Settings
from engine.tasks import load_task
from handler.aggregate import END
from handler.handler import Handler


class Served:
    """Answers payloads as a worker does; `ask` one, or several at the same time so that they share batches."""

    def __init__(self, bundle_path: Path) -> None:
        self.bundle = open_bundle(bundle_path)
        self.bundle.verify()
        settings = Settings()
        self.task = load_task(self.bundle, settings)
        batchers = {graph: self._batcher_of(graph) for graph in self.bundle.manifest.graphs}
        self._batcher = Router(batchers, Stats())
        self._handler = Handler(self.task, self._batcher, dict)

    def ask(self, payload: Any) -> Any:
        """The reply. Fails the test when it is an error."""
        (reply,) = self.ask_all([payload])
        return reply

    def ask_all(self, payloads: list[Any]) -> list[Any]:
        """The replies to payloads that arrive together."""
        replies = self._all(payloads)
        for reply in replies:
            assert not (isinstance(reply, dict) and "error" in reply), reply["error"]
        return replies

    def stream(self, payload: Any) -> list[Any]:
        """The parts of the reply, in the order in which they are sent."""
        parts: list[Any] = []

        async def keep(body: bytes) -> None:
            parts.append(json.loads(body)["output"])

        job = {"input": {**payload, "stream": True}}
        assert asyncio.run(self._handler.body(job, keep)) == END
        return parts

    def refusal(self, payload: Any) -> str:
        """The error of a payload that is refused."""
        (reply,) = self._all([payload])
        assert isinstance(reply, dict), reply
        return str(reply["error"])

    def close(self) -> None:
        """Stop the engine."""
        self._batcher.close()

    def _batcher_of(self, graph: str) -> Batcher:
        engine = OnnxRuntimeEngine(self.bundle, graph, threads=1)
        engine.warm_up()
        return Batcher(engine, max_rows=32, max_tokens=0, max_queued=10_000)

    def _all(self, payloads: list[Any]) -> list[Any]:
        async def ask() -> list[Any]:
            return list(await asyncio.gather(*(self._handler.handle({"input": payload}) for payload in payloads)))

        return asyncio.run(ask())
