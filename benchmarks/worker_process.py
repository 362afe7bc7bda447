"""A worker as its own process against the emulator: started, watched and stopped from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

from benchmarks.emulator import EmulatorThread
from benchmarks.processes import kill_tree, stop_process
from engine.daemon import in_daemon

STOP_TIMEOUT_S = 20.0
_LAST_BYTES = 10_000
_LOOK_S = 0.2
T = TypeVar("T")


class WorkerProcess:
    """Starts `command` with the emulator's variables and `env`; a context manager that leaves no process behind.

    Raises RuntimeError when the process ends, or takes no job within `timeout_s` seconds; with the last line that it
    printed, unless `log` says where that goes.
    """

    def __init__(
        self,
        emulator: EmulatorThread,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        worker_id: str = "worker-1",
        log: IO[str] | int | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        self._emulator = emulator
        self._worker_id = worker_id
        self._printed = tempfile.TemporaryFile() if log is None else None  # noqa: SIM115 - kill() closes it
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **emulator.worker_env(worker_id), **env},
            stdout=self._printed if log is None else log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            self.first_take_s = self._wait_for_take(timeout_s) - self.started
        except BaseException:
            self.kill()
            raise

    @classmethod
    def ours(cls, emulator: EmulatorThread, bundle: Path, **options: object) -> Self:
        """This project's worker. `options` are keyword arguments of the constructor; `env` is added to ours."""
        env = {"BUNDLE": str(bundle), **options.pop("env", {})}  # type: ignore[dict-item]
        return cls(emulator, [sys.executable, "-m", "handler"], env, **options)  # type: ignore[arg-type]

    def _wait_for_take(self, timeout_s: float) -> float:
        """When, on the emulator's clock, the first request for a job arrived."""
        while time.perf_counter() - self.started < timeout_s:
            record = self._emulator.call(lambda emulator: emulator.workers.get(self._worker_id))
            if record is not None and record.first_take is not None:
                return record.first_take
            if self.process.poll() is not None:
                raise self.ended("before it took a job")
            time.sleep(0.05)  # the emulator knows the exact time; a busier wait would take the worker's cores
        raise RuntimeError(f"the worker took no job within {timeout_s:g} s{self._last_line()}")

    def ended(self, when: str) -> RuntimeError:
        """How the process, which has ended, did so."""
        code = self.process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return RuntimeError(f"the worker {how} {when}{self._last_line()}")

    def _last_line(self) -> str:
        if self._printed is None:
            return ""
        number = self._printed.fileno()
        # pread: the offset is the worker's, too, and it may still print.
        end = os.pread(number, _LAST_BYTES, max(0, os.fstat(number).st_size - _LAST_BYTES)).decode(errors="replace")
        said = [line.strip() for line in end.splitlines() if line.strip()]
        return f"; it said last: {said[-1] if said else 'nothing'}"

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> float | None:
        """SIGTERM; seconds until the process ended, None when it had to be killed after `timeout_s`."""
        return stop_process(self.process, timeout_s)

    def kill(self) -> None:
        """Kill the process and its children."""
        kill_tree(self.process)
        if self._printed is not None:
            self._printed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def watched(workers: Sequence[WorkerProcess], measure: Callable[[], T]) -> T:
    """What `measure` returns, or raises.

    Raises RuntimeError as soon as a worker's process has ended, which `measure`, in a thread of its own, would only
    learn from answers that do not come.
    """
    done = in_daemon(measure, "measure")
    while not done.done() or done.exception() is not None:
        if dead := next((worker for worker in workers if worker.process.poll() is not None), None):
            raise dead.ended("in the middle of its work")
        if done.done():
            break
        wait([done], _LOOK_S)
    return done.result()
