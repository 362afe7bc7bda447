"""Messages between the worker's two processes, over a socket pair: four bytes of length, then `marshal`.

marshal because both ends are one interpreter, forked, and it is several times faster than JSON on what JSON can carry.
"""

from __future__ import annotations

import asyncio
import marshal
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

from handler.collector import loaded

_LENGTH = struct.Struct("<I")
_USUAL = 1 << 16  # bytes, more than all but images, sounds and bulk jobs have; for those there is another, for a while


class Frames(asyncio.BufferedProtocol):
    """One end: `send` and, for what the other end sends, a callback.

    It reads into a buffer of its own: asyncio would allocate 256 KiB for each read and give back all but the few
    hundred bytes that came, which took 16 us a message, and left the heap a little larger with every thousand jobs.
    """

    def __init__(self, on_frame: Callable[..., None], on_end: Callable[[], None]) -> None:
        self._on_frame = on_frame
        self._on_end = on_end
        self._usual = self._buffer = bytearray(_USUAL)
        self._filled = 0
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Called by the event loop: where the next bytes go."""
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the event loop when `nbytes` more are there."""
        self._filled += nbytes
        read = memoryview(self._buffer)[: self._filled]
        start, needed = 0, _LENGTH.size
        while len(read) - start >= _LENGTH.size:
            needed = _LENGTH.size + _LENGTH.unpack_from(read, start)[0]
            if len(read) - start < needed:
                break
            frame = loaded(marshal.loads, read[start + _LENGTH.size : start + needed])  # from our own fork
            start, needed = start + needed, _LENGTH.size
            self._on_frame(*frame)
        if start or needed > len(self._buffer):
            self._keep(read[start:], needed)

    def _keep(self, rest: memoryview, needed: int) -> None:
        self._buffer = bytearray(needed) if needed > _USUAL else self._usual
        self._filled = len(rest)
        self._buffer[: self._filled] = rest

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop when the other end is gone."""
        self._on_end()

    def send(self, *frame: Any) -> None:
        """Send one message. Raises ValueError for what marshal cannot carry; after the end it is dropped."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(*frame))

    def close(self) -> None:
        """Close this end; the other one notices."""
        if self._transport is not None:
            self._transport.close()


def pack(*frame: Any) -> bytes:
    """One message as bytes."""
    payload = marshal.dumps(frame)
    return _LENGTH.pack(len(payload)) + payload


async def open_frames(end: socket.socket, on_frame: Callable[..., None], on_end: Callable[[], None]) -> Frames:
    """Attach `end` to the running event loop."""
    loop = asyncio.get_running_loop()
    _, frames = await loop.create_unix_connection(lambda: Frames(on_frame, on_end), sock=end)
    return frames
