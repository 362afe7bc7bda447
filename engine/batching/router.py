"""Several graphs, one engine and one batcher each: rows go to the graph that they name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.batching.batcher import Batcher
    from engine.batching.stats import Stats
    from engine.tensors import Arrays, Row


class Router:
    """Answers rows through the batchers of a bundle's graphs, at least one; they belong to this object."""

    def __init__(self, batchers: Mapping[str, Batcher], stats: Stats) -> None:
        self.stats = stats
        self._batchers = batchers

    @property
    def queued(self) -> int:
        """Rows that wait, for whichever graph."""
        return sum(batcher.queued for batcher in self._batchers.values())

    @property
    def busy_s(self) -> float:
        """Seconds for which the longest of the running batches has run; 0 when every engine is idle."""
        return max(batcher.busy_s for batcher in self._batchers.values())

    @property
    def running(self) -> str:
        """How large that batch is, in words; empty when every engine is idle."""
        return max(self._batchers.values(), key=lambda batcher: batcher.busy_s).running

    @property
    def on_lost(self) -> Callable[[str], None]:
        """Called with a sentence when an engine is lost; see Batcher."""
        return next(iter(self._batchers.values())).on_lost

    @on_lost.setter
    def on_lost(self, tell: Callable[[str], None]) -> None:
        for batcher in self._batchers.values():
            batcher.on_lost = tell

    async def run(self, rows: Sequence[Row], on_rows_done: Callable[[int], None] | None = None) -> list[Arrays]:
        """The outputs of `rows`, in their order. Raises as Batcher.run does; then the rest is cancelled."""
        places: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            places.setdefault(row.graph, []).append(index)
        if len(places) == 1:
            (graph,) = places
            return await self._batchers[graph].run(rows, on_rows_done)
        done = dict.fromkeys(places, 0)

        def tell(graph: str, so_far: int) -> None:
            done[graph] = so_far
            if on_rows_done is not None and sum(done.values()) < len(rows):
                on_rows_done(sum(done.values()))

        async def answers_of(graph: str, at: Sequence[int]) -> list[Arrays]:
            told = partial(tell, graph) if on_rows_done is not None else None
            answers = await self._batchers[graph].run([rows[index] for index in at], told)
            tell(graph, len(at))  # which a batcher does not say of its last batch
            return answers

        running = [asyncio.ensure_future(answers_of(graph, at)) for graph, at in places.items()]
        try:
            found = await asyncio.gather(*running)
        finally:
            while running:  # those of a job that failed or was cancelled; none is held: see Group.forget
                running.pop().cancel()
        outputs: list[Arrays] = [{}] * len(rows)
        for at, answers in zip(places.values(), found, strict=True):
            for index, answer in zip(at, answers, strict=True):
                outputs[index] = answer
        return outputs

    def close(self, timeout_s: float | None = None) -> None:
        """Close every batcher, waiting at most `timeout_s` seconds for each."""
        for batcher in self._batchers.values():
            batcher.close(timeout_s)
