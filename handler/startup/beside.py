"""What a boot does beside its main thread. Rule: imports next to nothing, for it runs before everything else."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from engine.errors import WorkerFault

T = TypeVar("T")


class Beside(Generic[T]):
    """Runs `work` in a thread; a daemon, so that a boot that fails elsewhere does not wait for it.

    `niceness` is that of the thread alone: what is above 0 leaves the CPUs to whoever else has work to do.
    Raises WorkerFault where there may be no further thread: a worker needs some, and one that begins without them
    fails in a job.
    """

    def __init__(self, work: Callable[[], T], *, niceness: int = 0) -> None:
        self._work = work
        self._niceness = niceness
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise WorkerFault(f"{error}; raise the limit of processes and threads (ulimit -u, pids.max)") from error

    def _run(self) -> None:
        try:
            if self._niceness:
                with suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
            self._result = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> T:
        """Wait for what `work` returns. Raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result
