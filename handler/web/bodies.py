"""The bodies of requests: how long they may be and take, and how much of them is held before it is worked on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from aiohttp import web

from handler.web.replies import Encoded, TooLong, TooSlow

LONGEST_BODY = 30 * 1024 * 1024
"""Bytes; RunPod's limit of a request, and of a reply, of these endpoints (its documentation)."""
SMALL_BODY = 64 * 1024
"""Bytes. As much is read at once: aiohttp holds as much of what nobody reads."""
MOST_HELD_MB = 256
"""Of longer ones, while they are read and until they have a place. Slow ones keep other long ones waiting, at most."""
READ_TIMEOUT_S = 60.0
"""For the first SMALL_BODY bytes, and for the rest."""
_COMPRESSED = {"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"}
"""HTTP's codings (RFC 9110, 7932, 8878). What else clients write there, such as utf-8, changes no body."""


class Bodies:
    """Reads them, the long ones in the order in which they came as far as MOST_HELD_MB allow."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._room = asyncio.Semaphore(MOST_HELD_MB)
        self._queued: set[asyncio.Timeout] = set()
        self._patience_s: float | None = None
        self._reading: set[asyncio.Timeout] = set()

    def stop(self) -> None:
        """Who waits for others, or would have to, fails at once."""
        self._patience_s = 0.0
        _end(self._queued)

    def waiting(self) -> AbstractAsyncContextManager[None]:
        """For a block that waits for others, as `of` does for room. Raises TimeoutError as `stop` says."""
        return _among(self._queued, self._patience_s)

    def give_up(self) -> None:
        """Do not wait for the bytes of any, which fail with TooSlow."""
        _end(self._reading)

    @asynccontextmanager
    async def of(self, request: web.Request) -> AsyncIterator[bytearray]:
        """The body of `request`, held meanwhile. Raises Encoded, TooLong or TooSlow, and as `stop` says."""
        encoding = ", ".join(request.headers.getall("Content-Encoding", ())).lower()
        if not _COMPRESSED.isdisjoint(map(str.strip, encoding.split(","))):
            raise Encoded(f"the body is compressed ({encoding[:40]}); send it as it is, without `Content-Encoding`")
        size = LONGEST_BODY if request.content_length is None else request.content_length
        _refuse_longer(size)
        body = bytearray()
        if await self._read(request, body, SMALL_BODY):
            yield body
            return
        taken = 0
        try:
            async with self.waiting(), self._turn:
                for _ in range(1 + (size >> 20)):
                    await self._room.acquire()
                    taken += 1
            await self._read(request, body, LONGEST_BODY)
            yield body
        finally:
            for _ in range(taken):
                self._room.release()

    async def _read(self, request: web.Request, body: bytearray, enough: int) -> bool:
        """Add to `body` until it has more than `enough`; whether it has ended."""
        try:
            if request.content.is_eof():  # as is a body that came with its headers
                body += request.content.read_nowait()
                _refuse_longer(len(body))
                return True
            async with _among(self._reading, READ_TIMEOUT_S):
                while chunk := await request.content.readany():
                    body += chunk
                    _refuse_longer(len(body))
                    if len(body) > enough:
                        return False
        except TimeoutError:
            raise TooSlow(f"the body was not here within {READ_TIMEOUT_S:g} s") from None
        return True


@asynccontextmanager
async def _among(limits: set[asyncio.Timeout], seconds: float | None) -> AsyncIterator[None]:
    async with asyncio.timeout(seconds) as limit:
        limits.add(limit)
        try:
            yield
        finally:
            limits.discard(limit)


def _end(limits: set[asyncio.Timeout]) -> None:
    for limit in limits:
        if not limit.expired():
            limit.reschedule(0.0)


def _refuse_longer(size: int) -> None:
    if size > LONGEST_BODY:
        raise TooLong(f"the body has more than {LONGEST_BODY >> 20} MB; send less at once")
