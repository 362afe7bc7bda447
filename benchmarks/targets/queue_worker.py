"""Workers behind an emulated endpoint: ours, and those on the stock SDK. What they are asked crosses the queue."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.clients import Answers, Clients, embed_jobs
from benchmarks.emulator import JobRecord
from benchmarks.engines import served_engine, served_precision
from benchmarks.processes import stop_process, tree_memory_mb
from benchmarks.results_file import commit_of
from benchmarks.targets.base import ANSWER_TIMEOUT_S, Running, Way, vectors_of
from benchmarks.worker_process import WorkerProcess, watched
from benchmarks.workload import stream
from engine.bundle import open_bundle
from engine.errors import WorkerError
from engine.tensors import Array

# The SDK's start-up checks are the platform's, not a worker's; without them the stock worker starts faster.
QUIET = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true", "RUNPOD_LOG_LEVEL": "ERROR"}
_WARM_UP_S = 0.5


@dataclass(frozen=True)
class Command:
    """What starts a worker: a command and its environment, once its needs are met."""

    command: Sequence[str]
    env: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Made:
    """A target that this run starts; `made` meets what it needs, once. Raises RuntimeError."""

    name: str
    made: Callable[[], Command]

    def __post_init__(self) -> None:
        self.made = cache(self.made)

    def prepare(self) -> Mapping[str, str]:
        """See Target."""
        return self.made().versions


@dataclass
class QueueWorker(Made):
    """A worker that takes `concurrency` jobs at once from an endpoint of its own."""

    concurrency: int
    way: Way = "queue"

    @contextmanager
    def start(self, first: str | None = None) -> Iterator[Running]:
        """See Target."""
        command, env = self.how()
        with Clients() as clients:
            # Before the start, as RunPod starts a worker for a job; sent when we see it ready, it waits for our look.
            waiting = clients.emulator.submit({"text": first}) if first is not None else None
            with WorkerProcess(clients.emulator, command, env) as worker:
                yield _Running(clients, worker, waiting)

    def how(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """What starts it, and its variables but for the endpoint's. Raises RuntimeError."""
        found = self.made()
        concurrency = {"MAX_CONCURRENCY": str(self.concurrency), "CONCURRENCY": str(self.concurrency)}
        return found.command, {**QUIET, **concurrency, **found.env}


def ours(name: str, bundle: Callable[[], Path], concurrency: int, engine: str = "auto") -> QueueWorker:
    """This project's worker."""

    def made() -> Command:
        path = bundle()
        return Command([sys.executable, "-m", "handler"], {"BUNDLE": str(path), "ENGINE": engine}, served(path, engine))

    return QueueWorker(name, made, concurrency)


def served(bundle: Path, engine: str) -> dict[str, str]:
    """What our worker's version is: its code, the model, the bundle, the engine and the precision of its answers.

    Raises RuntimeError where the worker would not start.
    """
    environ = {**os.environ, "ENGINE": engine}
    try:
        opened = open_bundle(bundle)
        runs = {"engine": served_engine(bundle, environ), "precision": served_precision(bundle, environ)}
    except WorkerError as error:
        raise RuntimeError(str(error)) from None
    commit = commit_of("engine", "handler") or "unknown"
    return {"model": opened.manifest.model, "bundle": opened.sha256[:12], **runs, "commit": commit}


class _Running:
    def __init__(self, clients: Clients, worker: WorkerProcess, first: JobRecord | None) -> None:
        self._clients, self._worker = clients, worker
        self.started: float | None = worker.started
        self.ready_s: float | None = worker.first_take_s
        self.first_answer_s: float | None = None
        self.pid: int | None = worker.process.pid
        if first is not None:
            done = self._answered(first).done
            assert done is not None
            self.first_answer_s = done - worker.started

    def embed(self, texts: Sequence[str]) -> Array:
        """One job; several in base64: as JSON numbers, 2,000 vectors are nearly all that the platform takes."""
        emulator = self._clients.emulator
        payload = {"texts": list(texts), "encoding_format": "base64"} if len(texts) > 1 else {"text": texts[0]}
        answer = self._answered(emulator.submit(payload))
        if len(texts) == 1:
            return np.array([answer.output["embedding"]], np.float32)
        return vectors_of(answer.output["embeddings"])

    def _answered(self, job: JobRecord) -> JobRecord:
        answer = watched([self._worker], lambda: self._clients.emulator.wait(job, ANSWER_TIMEOUT_S))
        if answer.error is not None or not isinstance(answer.output, dict):
            raise RuntimeError(f"a job failed: {answer.error or answer.output}")
        return answer

    def one_by_one(self, texts: Sequence[str], pause_s: float) -> Answers:
        jobs = embed_jobs(texts)
        return watched([self._worker], lambda: self._clients.one_by_one(len(texts), jobs, pause_s=pause_s))

    def closed_loop(self, clients: int, seconds: float) -> Answers:
        def loops() -> Answers:
            self._clients.closed_loop(clients, _WARM_UP_S, embed_jobs(stream(seed=1)))
            return self._clients.closed_loop(clients, seconds, embed_jobs(stream()))

        return watched([self._worker], loops)

    def memory_mb(self) -> dict[str, float]:
        return tree_memory_mb(self._worker.process.pid)

    def stop(self, timeout_s: float) -> float | None:
        time.sleep(0.1)  # the last result is on its way
        return stop_process(self._worker.process, timeout_s)
