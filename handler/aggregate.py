"""What a streamed job is answered with in the end: the list of its parts' outputs.

As the SDK makes it where `return_aggregate_stream` is set; RunPod makes none. Rule: no HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from engine.sizes import LARGEST_REPLY
from handler.reply import ERROR

END = b'{"output":[]}'
"""What closes a stream whose parts are only at `/stream/ID`."""
STOP = b',"stopPod":true}'
"""How a body ends that asks RunPod for a fresh worker, and no other: that of an output has one more brace."""
_BEGIN = b'{"output":'


class Aggregate:
    """Keeps the parts, as encoded bodies, while their list is no more than RunPod takes."""

    def __init__(self) -> None:
        self._pieces: list[bytes | memoryview] = []
        self._size = len(END) + len(STOP)
        self._stops = False

    def add(self, body: bytes) -> None:
        """One more part."""
        end = -1
        if body.endswith(STOP[1:]):  # no comma where there is no output
            self._stops, end = True, -len(STOP)
        if not body.startswith(_BEGIN):
            return
        output = memoryview(body)[len(_BEGIN) : end]
        self._size += len(output) + 1
        if self._size > LARGEST_REPLY:
            self._pieces.clear()
        else:
            self._pieces += (b"," if self._pieces else b"", output)

    def body(self) -> bytes:
        """The final body; of too many parts it holds none."""
        return b"".join((_BEGIN, b"[", *self._pieces, b"]", STOP if self._stops else b"}"))


async def post_parts(bodies: AsyncGenerator[bytes, None], post: Callable[[bytes], Awaitable[None]]) -> bytes:
    """Have the bodies posted, all but the last, which closes the stream; the final body."""
    held: bytes | None = None
    whole = Aggregate()
    async with aclosing(bodies):
        async for body in bodies:
            if held is not None:
                await post(held)
                whole.add(held)
            if body.startswith(ERROR):
                return body
            held = body
    return whole.body() if held is None or held == END else held
