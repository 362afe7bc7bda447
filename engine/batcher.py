"""The shell around the batch queue: futures on the event loop's side, one engine thread on the other.

A batch runs as soon as the engine is free; batches form while it is busy. Nothing waits for company.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.batch_queue import BatchQueue, Entry
from engine.errors import EngineError
from engine.feed import run_rows

if TYPE_CHECKING:
    from engine.backends.base import Engine
    from engine.tensors import Arrays, Row


@dataclass(eq=False)
class _Group:
    """The rows of one job, gathered until the last is answered."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[list[Arrays]]
    results: list[Arrays | None]
    missing: int
    gone: bool = field(default=False)  # set by the loop's thread, read by the engine thread


@dataclass(frozen=True, slots=True)
class _Waiting:
    group: _Group
    index: int
    row: Row


class Batcher:
    """Runs rows on `engine` in a thread of its own. Safe to call from several event loops."""

    def __init__(self, engine: Engine, *, max_rows: int, max_tokens: int, max_queued: int) -> None:
        self.rows_served = 0
        self.batches_run = 0
        self._engine = engine
        self._queue: BatchQueue[_Waiting] = BatchQueue(
            max_rows=min(max_rows, engine.buckets.largest.batch),
            max_tokens=max_tokens,
            max_queued=max_queued,
            abandoned=lambda waiting: waiting.group.gone,
        )
        self._wake = threading.Condition()
        self._closed = False
        # A daemon, so that an engine that hangs cannot keep a process alive that wants to exit.
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Rows that wait."""
        return len(self._queue)

    async def run(self, rows: Sequence[Row]) -> list[Arrays]:
        """The outputs of `rows`, in their order.

        Raises Overloaded when they do not fit into the queue, EngineError when a batch that held one of them failed.
        """
        loop = asyncio.get_running_loop()
        group = _Group(loop, loop.create_future(), [None] * len(rows), len(rows))
        entries = [Entry(_Waiting(group, index, row), row.length) for index, row in enumerate(rows)]
        with self._wake:
            if self._closed:
                raise EngineError("the engine is closed")
            self._queue.push(entries)
            self._wake.notify()
        try:
            return await group.future
        finally:
            group.gone = True  # answered, failed or cancelled: rows that still wait are not run

    def close(self) -> None:
        """Stop after the running batch, fail what waits, and close the engine."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _serve(self) -> None:
        while batch := self._next():
            try:
                outputs = run_rows(self._engine, [entry.item.row for entry in batch])
            except Exception as error:  # whatever it is, it reaches the jobs of this batch and the thread lives
                self._fail(batch, error)
            else:
                self.batches_run += 1
                self.rows_served += len(batch)
                self._deliver(batch, outputs)
        self._fail(self._queue.drain(), EngineError("the worker is shutting down"))
        self._engine.close()

    def _next(self) -> list[Entry[_Waiting]]:
        """Wait for a batch; empty when closed."""
        with self._wake:
            while not self._closed:
                if batch := self._queue.pop():
                    return batch
                self._wake.wait()
        return []

    def _deliver(self, batch: list[Entry[_Waiting]], outputs: list[Arrays]) -> None:
        finished: list[_Group] = []
        for entry, output in zip(batch, outputs, strict=True):
            group = entry.item.group
            group.results[entry.item.index] = output
            group.missing -= 1
            if not group.missing:
                finished.append(group)
        for group in finished:
            _on_loop(group, None)

    def _fail(self, batch: list[Entry[_Waiting]], error: Exception) -> None:
        for group in {entry.item.group for entry in batch}:
            _on_loop(group, error)


def _on_loop(group: _Group, error: Exception | None) -> None:
    """Settle `group` from the engine thread."""
    try:
        group.loop.call_soon_threadsafe(_settle, group, error)
    except RuntimeError:
        pass  # the loop is closed, and with it whoever waited


def _settle(group: _Group, error: Exception | None) -> None:
    if group.future.done():  # cancelled, or failed with an earlier batch
        return
    if error is not None:
        group.future.set_exception(error if isinstance(error, EngineError) else _unexpected(error))
    else:
        group.future.set_result([result for result in group.results if result is not None])


def _unexpected(error: Exception) -> EngineError:
    wrapped = EngineError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
