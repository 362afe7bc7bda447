"""The shell around the batch queue: futures on the event loop's side, one engine thread on the other.

A batch runs as soon as the engine is free; batches form while it is busy. Nothing waits for company unless asked to.
With an engine of two slots the host works while the device does: it fills the next batch during a run when a whole one
waits, and hands out the answers of a run during the next. An engine that has lanes gets them, and a thread for each, as
soon as so many rows wait that they are of use: see lanes.py.

A row that finds the engine idle and comes alone is run on the event loop itself, if runs of its size are short: to
wake the engine's thread and to be woken by it costs more than the loop loses, which has nothing else to do. Not on an
engine that computes in the calling thread: ONNX Runtime's CPU provider, measured on two cores, answered one client 3 to
6 % more jobs a second in this way, but took 0.5 to 1.5 ms longer where the worker had been idle. Nor where the loop has
to go on should a run never end: see `on_loops`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from engine.batching.batch_queue import BatchQueue
from engine.batching.flight import Flight, Flights, Waiting
from engine.batching.gather import Group
from engine.batching.lanes import TOGETHER, Lanes
from engine.batching.stats import Stats
from engine.errors import EngineError, EngineLost, in_words

if TYPE_CHECKING:
    from engine.backends.base import Engine
    from engine.tensors import Arrays, Row


class Batcher:
    """Runs rows on `engine` in threads of its own. Safe to call from several event loops.

    `max_tokens` 0 takes what suits the engine. `say` gets a line for the log when lanes were opened, or could not be.
    With `on_loops` false no row runs on an event loop: for one that tells its jobs itself when the engine hangs.
    The engine belongs to this object: it is closed with it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_rows: int,
        max_tokens: int,
        max_queued: int,
        max_delay_s: float = 0.0,
        on_loops: bool = True,
        stats: Stats | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.stats = stats or Stats()
        self._engine = engine
        self._max_tokens = max_tokens = min(max_tokens, engine.buckets.max_tokens or max_tokens)
        self._queue: BatchQueue[Group, tuple[int, Row]] = BatchQueue(
            max_rows=min(max_rows, engine.buckets.largest.batch),
            max_tokens=max_tokens or engine.best_tokens,
            max_queued=max_queued,
            overhead_tokens=engine.overhead_tokens,
            max_delay_s=max_delay_s,
        )
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._wake_lanes = threading.Condition(self._lock)
        self._closed = False
        self.on_lost: Callable[[str], None] = lambda sentence: None
        """Called once, in the engine's thread, when the engine is lost: this process can answer nothing any more."""
        self._flights = Flights(self.stats, self._end)
        self._may_run_on_loops = on_loops and not (max_delay_s or engine.computes_in_caller)
        self._arriving = 0
        self._taken_here = False  # an event loop runs the engine instead of its thread
        self._say = say
        self._lanes = Lanes()
        self._engines = [engine]  # by lane
        self._lane_threads: list[threading.Thread] = []  # the one that opens the lanes, and theirs
        self._thread = _daemon(self._serve, "engine")
        self._thread.start()

    @property
    def queued(self) -> int:
        """Rows that wait."""
        return len(self._queue)

    @property
    def busy_s(self) -> float:
        """Seconds for which the longest of the running batches has run; 0 when the engine is idle."""
        return self._flights.busy_s

    @property
    def running(self) -> str:
        """How large that batch is, in words; empty when the engine is idle."""
        return self._flights.running

    async def run(self, rows: Sequence[Row], on_rows_done: Callable[[int], None] | None = None) -> list[Arrays]:
        """The outputs of `rows`, in their order.

        `on_rows_done` is called on the event loop after each batch with how many of them are done.
        Raises Overloaded when they do not fit into the queue, EngineError when the engine failed on one of them.
        """
        if not rows:
            return []
        if self._may_run_on_loops:
            await self._arrive()
        now = time.monotonic()
        group = Group(len(rows), now, on_rows_done)
        with self._lock:
            if self._closed:
                raise self._flights.lost or EngineError("the engine is closed")
            here = self._may_run_here(rows)
            if here:
                self._taken_here = True
            else:
                self._queue.push(group, [((index, row), row.length) for index, row in enumerate(rows)], now)
                self._wake.notify()
                self._wake_lanes_of_use()
        if here:
            self._run_here([(group, (0, rows[0]))])
        try:
            return await group
        finally:
            group.forget()
            if group.missing:  # cancelled, or failed with one of its rows: the others need not run
                with self._lock:
                    self._queue.cancel(group)

    def close(self, timeout_s: float | None = None) -> None:
        """Stop after the running batches, fail what waits, and close the engine; wait at most `timeout_s` seconds."""
        self._end()
        self._thread.join(timeout_s)

    async def _arrive(self) -> None:
        with self._lock:
            self._arriving += 1
        try:
            await asyncio.sleep(0)  # whoever came with this one arrives as well
        finally:
            with self._lock:
                self._arriving -= 1

    def _may_run_here(self, rows: Sequence[Row]) -> bool:
        """Whether to run `rows` on the event loop; asked with the lock held."""
        if not self._may_run_on_loops or self._arriving or self._taken_here or len(self._queue):
            return False
        if not self._lanes.share(TOGETHER, len(rows)):
            return False
        buckets = self._engine.buckets
        fits = len(rows) == 1 and rows[0].length <= buckets.largest.length
        return fits and self._flights.is_short(buckets.fit(1, rows[0].length))

    def _run_here(self, batch: list[Waiting]) -> None:
        try:
            flight = self._begin(TOGETHER, batch)
            self._flights.hand_out(flight, self._flights.finish(flight))
        finally:
            with self._lock:
                self._taken_here = False
                if self._closed or len(self._queue):  # woken for nothing, it took a fifth of a lone row
                    self._wake.notify()

    def _begin(self, lane: int, batch: list[Waiting]) -> Flight:
        return self._flights.start(self._flights.load(batch, self._engines[lane]))

    def _serve(self) -> None:
        self._work(TOGETHER, 1)
        with self._lock:
            waiting = self._queue.drain()
        for group in waiting:
            group.settle(self._flights.lost or EngineError("the worker is shutting down"))
        if self._flights.lost:
            self.on_lost(str(self._flights.lost))
        for thread in self._lane_threads:  # the first makes the others
            thread.join()
        for engine in reversed(self._engines):
            engine.close()

    def _work(self, *lanes: int) -> None:
        """Run what waits, each batch in that one of `lanes` whose turn it is, until closed.

        What an engine raises ends up with its job. Whatever else is raised here would leave every job without an
        answer, and nobody would know: the engine counts as lost then.
        """
        _keep_to(self._engines[lanes[0]].caller_cpu)
        taken: tuple[int, list[Waiting]] | None = None
        flight: Flight | None = None
        try:
            while (taken := self._next(lanes)) is not None:
                flight = self._begin(*taken)
                taken = None  # while this waits, it would hold the jobs of the batch, and all that they were answered
                while flight is not None:
                    flight = self._turn(flight)
        except Exception as error:
            self._lose(error, *(taken[1] if taken else ()), *(flight.batch if flight else ()))

    def _lose(self, error: Exception, *under_way: Waiting) -> None:
        """Nothing may run any more, because of `error`: what waits is drained, these rows were taken by then."""
        if self._flights.lost is None:
            self._flights.lose(EngineLost(f"batching failed with {in_words(error)}"))
        for group, _ in under_way:
            group.settle(self._flights.lost)

    def _next(self, lanes: Sequence[int]) -> tuple[int, list[Waiting]] | None:
        """Wait for a batch, and the one of `lanes` to run it in; None when closed."""
        is_first = TOGETHER in lanes
        wake = self._wake if is_first else self._wake_lanes
        with self._lock:
            for lane in lanes:
                self._lanes.end(lane)
            if not is_first and len(self._queue):
                self._wake.notify()  # it may be the turn of all together now
            while not self._closed or self._taken_here:
                due_in = None
                for lane in lanes if not self._taken_here else ():
                    if share := self._lanes.share(lane, len(self._queue)):
                        now = time.monotonic()
                        if batch := self._queue.pop(now, share, self._max_tokens or self._engines[lane].best_tokens):
                            self._taken(lane, batch)
                            return lane, batch
                        due_in = self._queue.due_in(now)
                wake.wait(due_in)
        return None

    def _taken(self, lane: int, batch: list[Waiting]) -> None:
        """`batch` is to be run in `lane`; called with the lock held."""
        self._lanes.begin(lane, len(batch))
        if lane != TOGETHER:
            self._wake_lanes_of_use()
        elif not self._lane_threads and 0 < self._engine.lanes <= len(batch) + len(self._queue):
            with suppress(RuntimeError):  # there may be no room for another thread just now
                opening = _daemon(self._open_lanes, "engine-lanes")
                opening.start()
                self._lane_threads.append(opening)

    def _wake_lanes_of_use(self) -> None:
        waiting = len(self._queue)
        if free := self._lanes.free(waiting):
            self._wake_lanes.notify(min(free, waiting))

    def _now(self, at_least: int) -> list[Waiting]:
        """A batch that is due, without waiting, when `at_least` rows wait; else, or when closed, none."""
        with self._lock:
            due = not self._closed and len(self._queue) >= at_least
            return self._queue.pop(time.monotonic()) if due else []

    def _turn(self, flight: Flight) -> Flight | None:
        """See `flight` to its end; the one that follows it, already started, when something waits.

        A batch that is not full yet is chosen only when the engine is free, so that it may still grow meanwhile.
        """
        flights, engine, slot = self._flights, flight.engine, 1 - flight.slot
        if engine.slots == 1:
            flights.hand_out(flight, flights.finish(flight))
            return None
        batch = self._now(self._queue.max_rows)
        try:
            following = flights.load(batch, engine, slot) if batch else None
            outputs = flights.finish(flight)
            if following is None and (batch := self._now(1)):
                following = flights.load(batch, engine, slot)
            started = flights.start(following) if following is not None else None
            flights.hand_out(flight, outputs)
            return started
        except Exception as error:  # as in _work, which does not know this batch yet
            self._lose(error, *batch)
            raise

    # Lanes

    def _open_lanes(self) -> None:
        with suppress(OSError):  # this thread's CPUs are those of the engine's thread, which started it
            os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))
        try:
            opened = self._engine.open_lanes()
            self._engines += opened
            for lane in range(2, len(opened) + 1):
                thread = _daemon(partial(self._work, lane), f"engine-{lane}")
                thread.start()
                self._lane_threads.append(thread)
        except Exception as error:  # no memory, no thread, or whatever else: there is an engine without them
            self._say(f"batches go on running one after the other: {error}")
            return
        with self._lock:
            self._lanes.open(len(opened))
        self.stats.opened(len(opened))
        self._say(f"batches run side by side from now on when {len(opened)} rows or more wait")

    def _end(self) -> None:
        """Let every thread end after what it runs."""
        with self._lock:
            self._closed = True
            self._wake.notify_all()
            self._wake_lanes.notify_all()


def _daemon(run: Callable[[], None], name: str) -> threading.Thread:
    """A thread that, should its engine hang, cannot keep a process alive that wants to exit."""
    return threading.Thread(target=run, name=name, daemon=True)


def _keep_to(cpu: int | None) -> None:
    if cpu is not None:
        with suppress(OSError):  # taken from this process meanwhile
            os.sched_setaffinity(0, {cpu})
