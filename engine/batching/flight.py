"""A batch on its way through an engine: filled, started, finished, handed out, or taken apart to find the culprit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from engine.batching.feed import load, unload
from engine.batching.finite import rows_not_finite
from engine.batching.gather import Group
from engine.errors import EngineError, EngineLost

if TYPE_CHECKING:
    from engine.backends.base import Engine
    from engine.batching.stats import Stats
    from engine.bucket import Bucket
    from engine.tensors import Arrays, Row


Waiting: TypeAlias = "tuple[Group, tuple[int, Row]]"
"""A job, and a row of it with its place there."""

_SHORT_RUN_S = 0.02  # for which an event loop may stand still


@dataclass(eq=False, slots=True)
class Flight:
    """A batch in the buffers of one slot of `engine`; `begin` is when it was started, in time.monotonic's seconds."""

    batch: list[Waiting]
    engine: Engine
    slot: int
    begin: float
    bucket: Bucket | None = None
    error: Exception | None = None

    @property
    def rows(self) -> list[Row]:
        """In the order of the batch."""
        return [row for _, (_, row) in self.batch]


class Flights:
    """Sees batches through; for several threads, each with an engine of its own.

    Whatever an engine raises reaches the job that it belongs to, and the thread lives. `on_lost` is called in the
    thread whose engine was lost, before its rows are told.
    """

    def __init__(self, stats: Stats, on_lost: Callable[[], None]) -> None:
        self.lost: EngineLost | None = None
        """Why nothing may run any more."""
        self._stats = stats
        self._on_lost = on_lost
        self._running: set[Flight] = set()
        self._short: set[Bucket] = set()  # those whose last run was short
        self._answering = threading.Lock()  # rows of one job may be done in two threads at once

    @property
    def busy_s(self) -> float:
        """Seconds for which the longest of the running batches has run; 0 when nothing runs."""
        running = list(self._running)  # a copy in one step, which no other thread comes between
        return time.monotonic() - min(flight.begin for flight in running) if running else 0.0

    @property
    def running(self) -> str:
        """How large that batch is, in words; empty when nothing runs."""
        running = list(self._running)
        if not running:
            return ""
        rows = min(running, key=lambda flight: flight.begin).rows
        longest = max(row.length for row in rows)
        return f"{len(rows)} row{'s' * (len(rows) > 1)}" + (f" up to {longest} long" if longest > 1 else "")

    def is_short(self, bucket: Bucket) -> bool:
        """Whether the last run of `bucket` took so little that an event loop may stand still for it."""
        return bucket in self._short

    def lose(self, error: EngineLost) -> None:
        """Nothing may run any more, because of `error`."""
        self.lost = error
        self._on_lost()

    def load(self, batch: list[Waiting], engine: Engine, slot: int = 0) -> Flight:
        """Fill the buffers."""
        flight = Flight(batch, engine, slot, time.monotonic())
        try:
            flight.bucket = load(engine, flight.rows, slot)
        except Exception as error:  # whatever it is
            flight.error = error
        return flight

    def start(self, flight: Flight) -> Flight:
        """Run it; where the engine returns at once, only begin to. It fails where the engine was lost meanwhile."""
        flight.begin = time.monotonic()
        self._running.add(flight)
        if flight.bucket is not None:
            try:
                self._check()
                flight.engine.start(flight.bucket, flight.slot)
            except Exception as error:  # as above
                flight.error = error
        return flight

    def finish(self, flight: Flight) -> Arrays:
        """Its outputs, valid until its slot is started again; of no use when it failed, and was seen to."""
        outputs: Arrays = {}
        begin = flight.begin
        if flight.error is None:
            try:
                outputs = flight.engine.finish(flight.slot)
                self._check()
            except Exception as error:  # as above
                flight.error = error
        if flight.error is not None:
            self._find_culprits(flight.batch, flight, begin)
        took = time.monotonic() - begin
        self._stats.stage("run", took)
        self._running.discard(flight)
        if flight.bucket is not None:
            (self._short.add if took < _SHORT_RUN_S else self._short.discard)(flight.bucket)
        return outputs

    def _check(self) -> None:
        """Raise what the engine was lost to, in whichever thread: what ran beside that may be wrong."""
        if self.lost:
            raise self.lost

    def hand_out(self, flight: Flight, outputs: Arrays) -> None:
        """Answer its rows, unless it failed. It is over then."""
        if flight.error is None:
            assert flight.bucket is not None
            self._answer(flight.batch, outputs, flight.begin, flight.bucket)
        flight.error = None  # whose traceback leads to the flight: see Group.forget

    def _find_culprits(self, batch: list[Waiting], flight: Flight, begin: float) -> None:
        """Run the halves of a batch that failed, and theirs, until the rows that the engine fails on stand alone.

        A lost engine runs nothing again: they all fail, and what waits. Each half is a run of its own to who watches
        how long one takes; `begin` is when the first was started.
        """
        if isinstance(flight.error, EngineLost):
            self.lose(flight.error)
        if len(batch) == 1:
            assert flight.error is not None
            for group, _ in batch:
                group.settle(flight.error)
            return
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            try:
                self._check()
                flight.batch, flight.begin = part, time.monotonic()
                bucket = load(flight.engine, flight.rows, flight.slot)
                flight.engine.start(bucket, flight.slot)
                outputs = flight.engine.finish(flight.slot)
                self._check()
            except Exception as error:  # as above
                flight.error = error
                self._find_culprits(part, flight, begin)
            else:
                self._answer(part, outputs, begin, bucket)

    def _answer(self, batch: list[Waiting], outputs: Arrays, begin: float, bucket: Bucket) -> None:
        """Hand out copies of `outputs`."""
        try:
            self._share_out(batch, outputs, begin, bucket)
        except Exception as error:  # as above: no memory for the copies, outputs that are not what was promised
            for group, _ in batch:
                group.settle(error)

    def _share_out(self, batch: list[Waiting], outputs: Arrays, begin: float, bucket: Bucket) -> None:
        """A row with NaN or infinity fails its job: a label chosen from it is a guess."""
        self._stats.batch(len(batch), sum(row.length for _, (_, row) in batch), bucket.tokens)
        broken = rows_not_finite(outputs, len(batch))
        copies = unload(outputs, len(batch))
        with self._answering:
            for place, ((group, (index, _)), output) in enumerate(zip(batch, copies, strict=True)):
                if place in broken:
                    what = f"the engine's {broken[place]!r} holds NaN or infinity for item {index}"
                    group.settle(EngineError(what))
                if group.add(index, output, begin):
                    self._stats.stage("queue", group.first_run - group.pushed)
                    group.settle()
            for group in {group for group, _ in batch}:
                group.report()
