"""A worker as its own process against the emulator: started, watched and stopped from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

from benchmarks.emulator import EmulatorThread

STOP_TIMEOUT_S = 20.0


class WorkerProcess:
    """Starts `command` with the emulator's variables and `env`; a context manager that leaves no process behind.

    Raises RuntimeError when the process ends, or takes no job within `timeout_s` seconds.
    """

    def __init__(
        self,
        emulator: EmulatorThread,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        worker_id: str = "worker-1",
        log: IO[str] | int = subprocess.DEVNULL,
        timeout_s: float = 120.0,
    ) -> None:
        self._emulator = emulator
        self._worker_id = worker_id
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **emulator.worker_env(worker_id), **env},
            stdout=log,
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
                raise RuntimeError(f"the worker ended with exit code {self.process.returncode} before it took a job")
            time.sleep(0.05)  # the emulator knows the exact time; a busier wait would take the worker's cores
        raise RuntimeError(f"the worker took no job within {timeout_s:g} s")

    def memory_mb(self) -> dict[str, float]:
        """Memory of all processes in MB: RSS added up, which counts shared pages again, and PSS, which does not."""
        main = psutil.Process(self.process.pid)
        tree = [main, *main.children(recursive=True)]
        pss = sum(process.memory_full_info().pss for process in tree)
        rss = sum(process.memory_info().rss for process in tree)
        return {"tree_rss_mb": rss / 1e6, "tree_pss_mb": pss / 1e6}

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> float | None:
        """SIGTERM; seconds until the process ended, None when it had to be killed after `timeout_s`."""
        begin = time.perf_counter()
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        return time.perf_counter() - begin

    def kill(self) -> None:
        """Kill the process and its children."""
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
