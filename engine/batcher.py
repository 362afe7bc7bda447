"""The shell around the batch queue: futures on the event loop's side, one engine thread on the other.

A batch runs as soon as the engine is free; batches form while it is busy. Nothing waits for company unless asked to.
With an engine of two slots the host works while the device does: it fills the next batch during a run when a whole one
waits, and hands out the answers of a run during the next.

A row that finds the engine idle and comes alone is run on the event loop itself, if runs of its size are short: to
wake the engine's thread and to be woken by it costs more than the loop loses, which has nothing else to do. Not on an
engine that computes in the calling thread: ONNX Runtime's CPU provider, measured on two cores, answered one client 3 to
6 % more jobs a second in this way, but took 0.5 to 1.5 ms longer where the worker had been idle.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from engine.batch_queue import BatchQueue
from engine.errors import EngineError, EngineLost
from engine.feed import load, unload
from engine.finite import rows_not_finite
from engine.gather import Group
from engine.stats import Stats

if TYPE_CHECKING:
    from engine.backends.base import Engine
    from engine.bucket import Bucket
    from engine.tensors import Arrays, Row


_Waiting: TypeAlias = "tuple[Group, tuple[int, Row]]"

_SHORT_RUN_S = 0.02  # for which an event loop may stand still


@dataclass(eq=False, slots=True)
class _Flight:
    """A batch on its way through the engine, in the buffers of one slot."""

    batch: list[_Waiting]
    slot: int
    begin: float
    bucket: Bucket | None = None
    error: Exception | None = None

    @property
    def rows(self) -> list[Row]:
        return [row for _, (_, row) in self.batch]


class Batcher:
    """Runs rows on `engine` in a thread of its own. Safe to call from several event loops.

    `max_tokens` 0 takes what suits the engine. The engine belongs to this object: it is closed with it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_rows: int,
        max_tokens: int,
        max_queued: int,
        max_delay_s: float = 0.0,
        stats: Stats | None = None,
    ) -> None:
        self.stats = stats or Stats()
        self._engine = engine
        self._queue: BatchQueue[Group, tuple[int, Row]] = BatchQueue(
            max_rows=min(max_rows, engine.buckets.largest.batch),
            max_tokens=max_tokens or engine.best_tokens,
            max_queued=max_queued,
            overhead_tokens=engine.overhead_tokens,
            max_delay_s=max_delay_s,
        )
        self._wake = threading.Condition()
        self._closed = False
        self.on_lost: Callable[[str], None] = lambda sentence: None
        """Called once, in the engine's thread, when the engine is lost: this process can answer nothing any more."""
        self._lost: EngineLost | None = None
        self._busy_since: float | None = None
        self._may_run_on_loops = not (max_delay_s or engine.computes_in_caller)
        self._arriving = 0
        self._idle = False  # the engine's thread waits for work
        self._taken_here = False  # an event loop runs the engine in its stead
        self._short: set[Bucket] = set()  # those whose last run was short
        # A daemon, so that an engine that hangs cannot keep a process alive that wants to exit.
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Rows that wait."""
        return len(self._queue)

    @property
    def busy_s(self) -> float:
        """Seconds for which the running batch has run; 0 when the engine is idle."""
        since = self._busy_since
        return time.monotonic() - since if since is not None else 0.0

    async def run(self, rows: Sequence[Row], on_rows_done: Callable[[int], None] | None = None) -> list[Arrays]:
        """The outputs of `rows`, in their order.

        `on_rows_done` is called on the event loop after each batch with how many of them are done.
        Raises Overloaded when they do not fit into the queue, EngineError when the engine failed on one of them.
        """
        if self._may_run_on_loops:
            await self._arrive()
        now = time.monotonic()
        group = Group(len(rows), now, on_rows_done)
        with self._wake:
            if self._closed:
                raise self._lost or EngineError("the engine is closed")
            here = self._may_run_here(rows)
            if here:
                self._taken_here = True
            else:
                self._queue.push(group, [((index, row), row.length) for index, row in enumerate(rows)], now)
                self._wake.notify()
        if here:
            self._run_here([(group, (0, rows[0]))])
        try:
            return await group.future
        finally:
            if group.missing:  # cancelled, or failed with one of its rows: the others need not run
                with self._wake:
                    self._queue.cancel(group)

    def close(self, timeout_s: float | None = None) -> None:
        """Stop after the running batch, fail what waits, and close the engine; wait at most `timeout_s` seconds."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout_s)

    async def _arrive(self) -> None:
        with self._wake:
            self._arriving += 1
        try:
            await asyncio.sleep(0)  # whoever came with this one arrives as well
        finally:
            with self._wake:
                self._arriving -= 1

    def _may_run_here(self, rows: Sequence[Row]) -> bool:
        """Whether to run `rows` on the event loop; asked with the lock held."""
        if not self._may_run_on_loops or not self._idle or self._arriving or self._taken_here or len(self._queue):
            return False
        buckets = self._engine.buckets
        fits = len(rows) == 1 and rows[0].length <= buckets.largest.length
        return fits and buckets.fit(1, rows[0].length) in self._short

    def _run_here(self, batch: list[_Waiting]) -> None:
        try:
            flight = self._start(self._load(batch, 0))
            self._hand_out(flight, self._finish(flight))
        finally:
            with self._wake:
                self._taken_here = False
                if self._closed or len(self._queue):  # woken for nothing, it took a fifth of a lone row
                    self._wake.notify()

    def _serve(self) -> None:
        if self._engine.caller_cpu is not None:
            with suppress(OSError):  # taken from this process meanwhile
                os.sched_setaffinity(0, {self._engine.caller_cpu})
        flight: _Flight | None = None
        while flight is not None or (batch := self._next()):
            flight = self._start(self._load(batch, 0)) if flight is None else self._turn(flight)
        with self._wake:
            waiting = self._queue.drain()
        for group in waiting:
            group.settle(self._lost or EngineError("the worker is shutting down"))
        if self._lost:
            self.on_lost(str(self._lost))
        self._engine.close()

    def _next(self) -> list[_Waiting]:
        """Wait for a batch; empty when closed."""
        with self._wake:
            self._idle = True
            while not self._closed or self._taken_here:
                now = time.monotonic()
                if not self._taken_here and (batch := self._queue.pop(now)):
                    self._idle = False
                    return batch
                self._wake.wait(None if self._taken_here else self._queue.due_in(now))
            self._idle = False
        return []

    def _now(self, at_least: int) -> list[_Waiting]:
        """A batch that is due, without waiting, when `at_least` rows wait; else, or when closed, none."""
        with self._wake:
            due = not self._closed and len(self._queue) >= at_least
            return self._queue.pop(time.monotonic()) if due else []

    def _turn(self, flight: _Flight) -> _Flight | None:
        """See `flight` to its end; the one that follows it, already started, when something waits.

        A batch that is not full yet is chosen only when the engine is free, so that it may still grow meanwhile.
        """
        if self._engine.slots == 1:
            self._hand_out(flight, self._finish(flight))
            return None
        slot = 1 - flight.slot
        following = self._load(batch, slot) if (batch := self._now(self._queue.max_rows)) else None
        outputs = self._finish(flight)
        if following is None and (batch := self._now(1)):
            following = self._load(batch, slot)
        started = self._start(following) if following is not None else None
        self._hand_out(flight, outputs)
        return started

    def _load(self, batch: list[_Waiting], slot: int) -> _Flight:
        flight = _Flight(batch, slot, time.monotonic())
        try:
            flight.bucket = load(self._engine, flight.rows, slot)
        except Exception as error:  # whatever it is, it reaches the job that it belongs to and the thread lives
            flight.error = error
        return flight

    def _start(self, flight: _Flight) -> _Flight:
        flight.begin = self._busy_since = time.monotonic()
        if flight.bucket is not None:
            try:
                self._engine.start(flight.bucket, flight.slot)
            except Exception as error:  # as above
                flight.error = error
        return flight

    def _finish(self, flight: _Flight) -> Arrays:
        """The outputs of `flight`, valid until its slot is started again; empty when it failed and was seen to."""
        outputs: Arrays = {}
        if flight.error is None:
            try:
                outputs = self._engine.finish(flight.slot)
            except Exception as error:  # as above
                flight.error = error
        if flight.error is not None:
            self._find_culprits(flight.batch, flight)
        took = time.monotonic() - flight.begin
        self.stats.stage("run", took)
        self._busy_since = None
        if flight.bucket is not None:
            (self._short.add if took < _SHORT_RUN_S else self._short.discard)(flight.bucket)
        return outputs

    def _hand_out(self, flight: _Flight, outputs: Arrays) -> None:
        if flight.error is None:
            assert flight.bucket is not None
            self._answer(flight.batch, outputs, flight.begin, flight.bucket)

    def _find_culprits(self, batch: list[_Waiting], flight: _Flight) -> None:
        """Run the halves of a batch that failed, and theirs, until the rows that the engine fails on stand alone.

        A lost engine runs nothing again: it fails the whole batch, and what waits.
        """
        if isinstance(flight.error, EngineLost):
            with self._wake:
                self._lost, self._closed = flight.error, True
        if len(batch) == 1 or self._lost:
            assert flight.error is not None
            for group, _ in batch:
                group.settle(flight.error)
            return
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            try:
                if self._lost:
                    raise self._lost
                bucket = load(self._engine, [row for _, (_, row) in part], flight.slot)
                self._engine.start(bucket, flight.slot)
                outputs = self._engine.finish(flight.slot)
            except Exception as error:  # as above
                flight.error = error
                self._find_culprits(part, flight)
            else:
                self._answer(part, outputs, flight.begin, bucket)

    def _answer(self, batch: list[_Waiting], outputs: Arrays, begin: float, bucket: Bucket) -> None:
        """Hand out copies of `outputs`."""
        try:
            self._share_out(batch, outputs, begin, bucket)
        except Exception as error:  # as above: no memory for the copies, outputs that are not what was promised
            for group, _ in batch:
                group.settle(error)

    def _share_out(self, batch: list[_Waiting], outputs: Arrays, begin: float, bucket: Bucket) -> None:
        """A row with NaN or infinity fails its job: a label chosen from it is a guess."""
        self.stats.batch(len(batch), sum(row.length for _, (_, row) in batch), bucket.tokens)
        broken = rows_not_finite(outputs, len(batch))
        for place, ((group, (index, _)), output) in enumerate(zip(batch, unload(outputs, len(batch)), strict=True)):
            if place in broken:
                what = f"the engine's {broken[place]!r} holds NaN or infinity for item {index}"
                group.settle(EngineError(what))
            if group.add(index, output, begin):
                self.stats.stage("queue", group.first_run - group.pushed)
                group.settle()
        for group in {group for group, _ in batch}:
            group.report()
