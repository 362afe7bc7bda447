"""Servers that are asked over HTTP, without a queue in front: started here, or by the user, who then gives a URL.

The clients live in this process, one connection each, kept open.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Self

import aiohttp
import numpy as np

from benchmarks.clients import Answers
from benchmarks.processes import kill_session, stop_process, tree_memory_mb
from benchmarks.targets.base import (
    ANSWER_TIMEOUT_S,
    START_TIMEOUT_S,
    Running,
    Way,
    batches,
)
from benchmarks.targets.dialects import Dialect
from benchmarks.targets.queue_worker import Made
from benchmarks.workload import stream
from engine.tensors import Array

PORT = "{port}"
"""In a command: the port that the server is to listen on."""
_WARM_UP = 10
_AT_ONCE = 4  # requests of one bulk call, where a server takes only so many texts in a request
_POLL_S = 0.005  # until it listens; its start is rounded up to this
_ASKED_S = 0.02  # between requests to one that answers that it is not ready, which take its time


@dataclass
class HttpServer(Made):
    """A server that `made` says how to start, and that is asked as `dialect` says."""

    dialect: Dialect
    way: Way = "http"

    @contextmanager
    def start(self, first: str | None = None) -> Iterator[Running]:
        """See Target."""
        found, port = self.made(), str(_free_port())
        command = [part.replace(PORT, port) for part in found.command]
        started, quiet = time.perf_counter(), subprocess.DEVNULL
        env = {**os.environ, **found.env}
        # A session of its own, for its children may outlive it: LitServe's do.
        with subprocess.Popen(
            command, env=env, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
        ) as process:
            try:
                with RunningServer(f"http://127.0.0.1:{port}", self.dialect, process, started=started) as running:
                    if first is not None:
                        running.embed([first])
                        running.first_answer_s = time.perf_counter() - started
                    yield running
            finally:
                kill_session(process)


@dataclass
class RemoteServer:
    """A server that the user started: it can be asked, and neither started, weighed nor stopped."""

    name: str
    dialect: Dialect
    url: str
    way: Way = "http"
    timeout_s: float = 5.0
    """Within which its health route has to answer."""

    def prepare(self) -> Mapping[str, str]:
        """See Target."""
        with RunningServer(self.url, self.dialect, timeout_s=self.timeout_s):
            return {}

    @contextmanager
    def start(self, first: str | None = None) -> Iterator[Running]:
        """Nothing is started, and `first` not asked."""
        with RunningServer(self.url, self.dialect, timeout_s=self.timeout_s) as running:
            yield running


class RunningServer:
    """See Running. Raises RuntimeError when the server ends or is not healthy within `timeout_s` seconds."""

    def __init__(
        self,
        url: str,
        dialect: Dialect,
        process: subprocess.Popen[bytes] | None = None,
        *,
        started: float | None = None,
        timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self.started = started
        self.first_answer_s: float | None = None
        self.pid = process.pid if process else None
        self._url, self._dialect, self._process = url.rstrip("/"), dialect, process
        self._runner = asyncio.Runner()
        try:
            self._session = self._runner.run(self._open())
            self._runner.run(self._wait(timeout_s))
        except BaseException:
            self._close()
            raise
        self.ready_s = time.perf_counter() - started if started is not None else None

    def embed(self, texts: Sequence[str]) -> Array:
        """In one request, or in as many as the server's limit on texts makes of them."""
        return self._runner.run(self._embed(texts))

    def one_by_one(self, texts: Sequence[str], pause_s: float) -> Answers:
        """See Running."""

        async def ask() -> Answers:
            answers, begin = Answers(), time.perf_counter()
            for text in texts:
                await asyncio.sleep(pause_s)
                await self._timed(text, answers)
            answers.seconds = time.perf_counter() - begin
            return answers

        return self._runner.run(ask())

    def closed_loop(self, clients: int, seconds: float) -> Answers:
        """See Running; a connection for each client."""
        self.one_by_one(list(islice(stream(seed=1), _WARM_UP)), 0.0)
        return self._runner.run(self._closed_loop(clients, seconds, stream()))

    def memory_mb(self) -> dict[str, float]:
        """See Running."""
        return tree_memory_mb(self._process.pid) if self._process else {}

    def stop(self, timeout_s: float) -> float | None:
        """See Running."""
        return stop_process(self._process, timeout_s) if self._process else None

    async def _closed_loop(self, clients: int, seconds: float, texts: Iterator[str]) -> Answers:
        answers, begin = Answers(), time.perf_counter()

        async def client() -> None:
            while time.perf_counter() < begin + seconds:
                own = Answers()
                await self._timed(next(texts), own)
                now = time.perf_counter()
                answers.errors += own.errors
                if now < begin + seconds:  # as clients.py counts
                    answers.ms += own.ms
                    answers.seconds = now - begin
                else:
                    answers.late_ms += own.ms

        await asyncio.gather(*(client() for _ in range(clients)))
        return answers

    async def _timed(self, text: str, answers: Answers) -> None:
        begin = time.perf_counter()
        try:
            await self._ask([text])
        except RuntimeError as error:
            answers.errors.append(str(error))
        else:
            answers.ms.append((time.perf_counter() - begin) * 1e3)

    async def _embed(self, texts: Sequence[str]) -> Array:
        limit = asyncio.Semaphore(_AT_ONCE)

        async def part(some: Sequence[str]) -> Array:
            async with limit:
                return await self._ask(some)

        return np.concatenate(await asyncio.gather(*map(part, batches(texts, self._dialect.most_texts))))

    async def _ask(self, texts: Sequence[str]) -> Array:
        try:
            async with self._session.post(self._url + self._dialect.path, json=self._dialect.ask(texts)) as reply:
                if reply.status != 200:
                    raise RuntimeError(f"{self._url}: HTTP {reply.status}, {(await reply.text())[:200]}")
                return self._dialect.vectors(await reply.json(content_type=None))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RuntimeError(f"{self._url}: {type(error).__name__} {error}") from error

    async def _open(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)

    async def _wait(self, timeout_s: float) -> None:
        """Until the health route answers 200."""
        deadline = time.perf_counter() + timeout_s
        while True:
            pause_s = _POLL_S
            left = aiohttp.ClientTimeout(total=max(_POLL_S, deadline - time.perf_counter()))
            try:
                async with self._session.get(self._url + self._dialect.health, timeout=left) as reply:
                    if reply.status == 200:
                        return
                    pause_s = _ASKED_S
            except (aiohttp.ClientError, TimeoutError):
                pass  # it does not listen, or answer, yet
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"the server ended with exit code {self._process.returncode} before it was ready")
            if time.perf_counter() > deadline:
                raise RuntimeError(f"{self._url}{self._dialect.health} was not ready within {timeout_s:g} s")
            await asyncio.sleep(pause_s)

    def _close(self) -> None:
        session: Any = getattr(self, "_session", None)
        closing: Awaitable[None] | None = session.close() if session is not None else None
        if closing is not None:
            self._runner.run(closing)  # type: ignore[arg-type]  # a coroutine, which Awaitable does not say
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
