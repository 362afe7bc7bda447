"""What every target of `python -m benchmarks peers` can be asked, whatever it is and however it is spoken to.

A target is made ready (`prepare`: its environment, its bundle), started in a process of its own (`start`), asked for
vectors, measured and stopped. Three kinds implement it: queue_worker.py (a worker behind an endpoint), http_server.py
(a server without one), in_process.py (a library, in a process that answers over a pipe).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol, TypeAlias

import numpy as np

from benchmarks.clients import Answers
from engine.tensors import Array

Way: TypeAlias = Literal["queue", "http", "pipe"]
"""How a target is spoken to; the table's footnote says what that costs."""

START_TIMEOUT_S = 180.0
"""Until a target is ready: torch.compile builds C++ on the way."""
ANSWER_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0


class Running(Protocol):
    """A target that is ready; a context manager that leaves no process behind."""

    @property
    def started(self) -> float | None:
        """When it was started, on time.perf_counter's clock; None for one that somebody else started."""
        ...

    @property
    def ready_s(self) -> float | None:
        """Seconds from there until it was ready: asked for jobs, took connections, told so."""
        ...

    @property
    def first_answer_s(self) -> float | None:
        """Seconds from there until the first text that it was started with was answered; None without one."""
        ...

    @property
    def pid(self) -> int | None:
        """Its process; None for one that somebody else started."""
        ...

    def embed(self, texts: Sequence[str]) -> Array:
        """The vectors of `texts` from one request, job or call; (texts, dimensions) float32. Raises RuntimeError."""
        ...

    def one_by_one(self, texts: Sequence[str], pause_s: float) -> Answers:
        """Each text `pause_s` seconds after the last answer."""
        ...

    def closed_loop(self, clients: int, seconds: float) -> Answers | None:
        """`clients` that each send a text when their last one is answered. None where there are no clients."""
        ...

    def memory_mb(self) -> dict[str, float]:
        """See `tree_memory_mb`; empty for a target that somebody else started."""
        ...

    def stop(self, timeout_s: float) -> float | None:
        """SIGTERM; seconds until it had ended, None when it had to be killed or was not ours to stop."""
        ...


class Target(Protocol):
    """One of those that are compared."""

    @property
    def name(self) -> str:
        """As in results files."""
        ...

    @property
    def way(self) -> Way:
        """How it is spoken to."""
        ...

    def prepare(self) -> Mapping[str, str]:
        """Make what it needs; the versions of what it runs. Raises RuntimeError when it cannot be had."""
        ...

    def start(self, first: str | None = None) -> AbstractContextManager[Running]:
        """Start it and wait until it is ready and has answered `first`, a text, which a queue holds from the beginning.

        Raises RuntimeError when it ends or is not ready in time.
        """
        ...


def vectors_of(encoded: Sequence[str]) -> Array:
    """Base64 of little-endian float32, one string a vector; (vectors, dimensions) float32."""
    return np.array([np.frombuffer(base64.b64decode(one), "<f4") for one in encoded])


def batches(texts: Sequence[str], most: int) -> list[Sequence[str]]:
    """`texts` in pieces of at most `most`."""
    return [texts[start : start + most] for start in range(0, len(texts), most)]
