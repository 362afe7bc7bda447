"""Jobs of every kind, a number of them at a time, and whether each came back as it should; what the soak sends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

from benchmarks.emulator import Emulator, EmulatorThread, JobRecord, Status
from benchmarks.workload import stream

Json = dict[str, Any]

IN_FLIGHT = 32
STALL_S = 120.0
"""Without a single answer."""
_KEPT_JOBS = 1000  # finished ones that the emulator remembers: this process must not fill the memory either
_SHOWN_ERRORS = 5


def mixed_jobs() -> Iterator[Json]:
    """Payloads without end: mostly one text, some lists of up to 32, some in base64, one in a hundred not allowed."""
    texts = stream()
    for number in count():
        kind = number % 100
        if kind == 0:
            yield {"texts": next(texts)}
        elif kind in (1, 2):
            yield {"texts": list(islice(texts, 32))}
        elif kind < 10:
            yield {"texts": list(islice(texts, kind))}
        elif kind < 15:
            yield {"text": next(texts), "encoding_format": "base64"}
        else:
            yield {"text": next(texts)}


class MixedLoad:
    """An emulated endpoint and clients on its own loop; one job in 50 is cancelled while it is out."""

    def __init__(self) -> None:
        self.emulator = EmulatorThread(on_end=self._ended, keep_finished=_KEPT_JOBS)
        self.wrong: list[str] = []
        self._payloads: Iterator[Json] = iter(())
        self._unsent = self._answered = 0
        self._out: set[str] = set()
        """Ids: what others submit to the endpoint, as the soak its health jobs, ends here as well."""
        self._idle = threading.Event()

    def run(self, jobs: int, payloads: Iterator[Json]) -> None:
        """Send `jobs` of `payloads`, IN_FLIGHT at a time; return when all have ended."""
        if not jobs:
            return
        self._payloads, self._unsent = payloads, jobs
        self._idle.clear()
        self.emulator.call(self._start)
        seen = -1
        while not self._idle.wait(STALL_S):
            if self._answered == seen:
                raise RuntimeError(f"{len(self._out)} jobs are out and none was answered for {STALL_S:g} s")
            seen = self._answered

    # On the emulator's loop

    def _start(self, emulator: Emulator) -> None:
        for _ in range(min(IN_FLIGHT, self._unsent)):
            self._send(emulator)

    def _send(self, emulator: Emulator) -> None:
        self._unsent -= 1
        record = emulator.submit(next(self._payloads))
        self._out.add(record.id)
        if self._unsent % 50 == 7:
            asyncio.get_running_loop().call_later(0.003, self._cancel, emulator, record)

    def _cancel(self, emulator: Emulator, record: JobRecord) -> None:
        if not record.finished:
            emulator.cancel(record)

    def _ended(self, record: JobRecord) -> None:
        if record.id in self._out:
            # Not at once: the store is in the middle of ending this one.
            asyncio.get_running_loop().call_soon(self._next, record)

    def _next(self, record: JobRecord) -> None:
        if (wrong := _wrong(record)) and len(self.wrong) < _SHOWN_ERRORS:
            self.wrong.append(wrong)
        self._answered += 1
        self._out.remove(record.id)
        if self._unsent:
            self._send(self.emulator.emulator)
        elif not self._out:
            self._idle.set()


def _wrong(record: JobRecord) -> str | None:
    payload = record.input
    if record.status is Status.CANCELLED:
        return None
    allowed = not isinstance(payload.get("texts"), str)
    if not allowed:
        refused = record.status is Status.FAILED and str(record.error).startswith("invalid input")
        return None if refused else f"a job that is not allowed ended {record.status}"
    if record.status is not Status.COMPLETED:
        return f"a job ended {record.status}: {record.error}"
    vectors = record.output.get("embeddings", [record.output.get("embedding")])
    asked = len(payload.get("texts", [0]))
    return None if len(vectors) == asked else f"{len(vectors)} vectors for {asked} texts"
