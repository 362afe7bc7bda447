"""The rows of one job, gathered until the last is answered. Rule: what happens to the job happens on its event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, in_words

if TYPE_CHECKING:
    from engine.tensors import Arrays


class Group:
    """A job of `count` rows, pushed at `now` in seconds of time.monotonic; made on the event loop that awaits it.

    To await it gives the outputs, in the order of the rows, or raises what it was settled with. Whoever runs the rows
    may do so in any thread. `on_rows_done` is told on the event loop how many rows are done.
    """

    __slots__ = ("_future", "_loop", "_on_rows_done", "_results", "_thread", "first_run", "missing", "pushed")

    def __init__(self, count: int, now: float, on_rows_done: Callable[[int], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._on_rows_done = on_rows_done
        self._results: list[Arrays | None] = [None] * count
        self._future: asyncio.Future[list[Arrays]] | None = self._loop.create_future()
        self.missing = count
        self.pushed = now
        self.first_run = 0.0
        """When the first of its rows was run."""

    def __await__(self) -> Generator[Any, None, list[Arrays]]:
        assert self._future is not None, "it was forgotten"
        return self._future.__await__()

    def forget(self) -> None:
        """Nobody awaits it any more.

        The error of a job leads, by its traceback, to whoever had the job in hand, and so to this object: it must not
        lead back, or the job's rows are held until Python looks for circles, for which it does not count their bytes.
        """
        self._future = None

    def add(self, index: int, output: Arrays, begin: float) -> bool:
        """Keep the output of row `index`, run at `begin`; whether it was the last that was missing."""
        self.first_run = self.first_run or begin
        self._results[index] = output
        self.missing -= 1
        return not self.missing

    def settle(self, error: Exception | None = None) -> None:
        """End the job with its outputs, or with `error`, unless it has ended already."""
        self._call(self._settle, error)

    def report(self) -> None:
        """Tell how many rows are done, where anybody asked and some are still missing."""
        if self._on_rows_done is not None and self.missing:
            self._call(self._report, len(self._results) - self.missing)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        if threading.get_ident() == self._thread:
            function(*arguments)
            return
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            pass  # the loop is closed, and with it whoever waited

    def _report(self, done: int) -> None:
        if self._on_rows_done is not None and self._future is not None and not self._future.done():
            self._on_rows_done(done)

    def _settle(self, error: Exception | None) -> None:
        future = self._future
        if future is None or future.done():  # cancelled, or failed with an earlier row
            return
        if error is None:
            future.set_result([result for result in self._results if result is not None])
        elif isinstance(error, EngineError):
            future.set_exception(error)
        else:
            wrapped = EngineError(in_words(error))
            wrapped.__cause__ = error
            future.set_exception(wrapped)
