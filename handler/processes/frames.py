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


class Frames(asyncio.Protocol):
    """One end: `send` and, for what the other end sends, a callback."""

    def __init__(self, on_frame: Callable[..., None], on_end: Callable[[], None]) -> None:
        self._on_frame = on_frame
        self._on_end = on_end
        self._buffer = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            frame = loaded(marshal.loads, memoryview(self._buffer)[_LENGTH.size : end])  # from our own fork
            del self._buffer[:end]
            self._on_frame(*frame)

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
