"""Libraries in a process of their own that answers over a pipe: what they do without any server around them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from benchmarks.clients import Answers
from benchmarks.targets.base import Running, Way, vectors_of
from benchmarks.targets.pipe import PipeProcess
from benchmarks.targets.queue_worker import Made
from benchmarks.workload import stream
from engine.tensors import Array

_WARM_UP = 10


@dataclass
class Library(Made):
    """A script that embeds the texts of every line that it reads; targets/library.py is one."""

    way: Way = "pipe"

    @contextmanager
    def start(self, first: str | None = None) -> Iterator[Running]:
        """See Target."""
        found = self.made()
        with PipeProcess(found.command, found.env) as process:
            yield _Running(process, first)


class _Running:
    def __init__(self, process: PipeProcess, first: str | None) -> None:
        self._process = process
        self.started: float | None = process.started
        self.ready_s: float | None = process.ready_s
        self.first_answer_s: float | None = None
        self.pid: int | None = process.process.pid
        if first is not None:
            self.embed([first])
            self.first_answer_s = time.perf_counter() - process.started

    def embed(self, texts: Sequence[str]) -> Array:
        return vectors_of(self._process.ask({"texts": list(texts)})["embeddings"])

    def one_by_one(self, texts: Sequence[str], pause_s: float) -> Answers:
        answers, first = Answers(), time.perf_counter()
        for text in texts:
            time.sleep(pause_s)
            begin = time.perf_counter()
            self.embed([text])
            answers.ms.append((time.perf_counter() - begin) * 1e3)
        answers.seconds = time.perf_counter() - first
        return answers

    def closed_loop(self, clients: int, seconds: float) -> Answers | None:
        """A library has one caller."""
        if clients > 1:
            return None
        texts = stream()
        self.one_by_one(list(islice(stream(seed=1), _WARM_UP)), 0.0)
        answers, begin = Answers(), time.perf_counter()
        while answers.seconds < seconds:
            answers.ms += self.one_by_one([next(texts)], 0.0).ms
            answers.seconds = time.perf_counter() - begin
        return answers

    def memory_mb(self) -> dict[str, float]:
        return self._process.memory_mb()

    def stop(self, timeout_s: float) -> float | None:
        return self._process.stop(timeout_s)
