"""One request after the other on one connection, in HTTP/1.1. What is read is read by httptools, Node's own parser.

aiohttp did this until its share was measured: two fifths of what this process imports, and as much of what it computes
for a job. RunPod is one host that gets two kinds of request; what else aiohttp can do nobody here asked for.
"""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from dataclasses import dataclass
from typing import Any, cast

import httptools

from handler.collector import loaded

_WHOLE = 256 * 1024  # bytes of a body that are sent, and held twice if need be, without looking at the other end
_SMALL = 10_000  # bytes that leave at once: TCP sends ten segments before it hears of the other end, RFC 6928
_COMPRESSED = ("gzip", "x-gzip", "deflate")
_AS_AIOHTTP = {
    "lenient_headers": True,
    "lenient_optional_cr_before_lf": True,
    "lenient_spaces_after_chunk_size": True,
}
"""What aiohttp forgives a server: odd bytes in headers, lines that end without CR, spaces after a chunk's length."""


class StatusError(Exception):
    """A reply whose status says no. Takes what aiohttp's ClientResponseError takes, for the SDK derives from that."""

    def __init__(self, request_info: object, history: object, *, status: int, message: str) -> None:
        super().__init__(f"status {status} {message}".rstrip())


class Interrupted(ConnectionError):
    """The connection ended before the reply did, or what came is not HTTP.

    `begun`: something of the reply was here; `status`: its status, where that was.
    """

    def __init__(self, message: str, *, begun: bool = False, status: int | None = None) -> None:
        super().__init__(message)
        self.begun = begun
        self.status = status


@dataclass(slots=True)
class Reply:
    """What RunPod said; with the names of aiohttp's ClientResponse, which the SDK's functions read."""

    status: int
    reason: str
    headers: dict[str, str]
    """Their names in lower case; of those with the same name the last."""
    body: bytes
    was_read: bool = False
    """Whether its value was asked for."""
    unreadable: str = ""
    """Why it has none, if it was."""
    request_info: Any = None
    history: tuple[()] = ()

    @property
    def content_type(self) -> str:
        """Without its parameters, in lower case."""
        return self.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()

    @property
    def content_length(self) -> int:
        """Bytes of the body."""
        return len(self.body)

    def raise_for_status(self) -> None:
        """Raise StatusError for a status of 400 and above."""
        if self.status >= 400:
            raise StatusError(None, (), status=self.status, message=self.reason)

    async def json(self) -> Any:
        """The body's value. Raises ValueError, or RecursionError."""
        self.was_read = True
        try:
            return loaded(json.loads, self.body.decode())
        except (ValueError, RecursionError) as error:
            self.unreadable = str(error)
            raise


class Connection(asyncio.Protocol):
    """`ask` sends a request and returns its reply; one at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.idle_since = 0.0
        self.replying = False
        """The headers of a reply are here, and its end is not."""
        self.heard_at = float("-inf")
        """When bytes of a reply came last, on the clock time.monotonic."""
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(**_AS_AIOHTTP)
        self._answer: asyncio.Future[Reply] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._rest_s: float | None = None
        self._cut: asyncio.TimerHandle | None = None
        self._begun = False
        self._surplus = False
        self._reason = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    @property
    def is_open(self) -> bool:
        """Whether a further request may be sent."""
        return self.transport is not None and not self.transport.is_closing()

    @property
    def is_asking(self) -> bool:
        """Whether a request is under way, until whoever made it has its reply."""
        return self._answer is not None

    async def ask(self, head: bytes, body: bytes = b"", *, rest_s: float | None = None) -> Reply:
        """The reply to a request; `head` ends with an empty line.

        With `rest_s` a reply counts as interrupted when so many seconds after its headers it has not ended. Raises
        Interrupted. Whoever gives up on a reply ends the connection with it.
        """
        if self.transport is None or self.transport.is_closing():
            raise Interrupted("the server has ended the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._rest_s, self._begun = rest_s, False
        may_go_on = False
        try:
            is_sent = await self._send(head, body)
            reply = await self._answer
            # A server that does not want a body may never read the rest of it, which buffers here may still hold.
            may_go_on = is_sent and (reply.status < 300 or len(body) <= _SMALL)
            return reply
        finally:
            if not may_go_on:
                self.transport.abort()
            self._answer = None
            if self._cut is not None:
                self._cut.cancel()
                self._cut = None

    async def _send(self, head: bytes, body: bytes) -> bool:
        """Whether all was sent before the server replied; a large body goes in parts."""
        assert self.transport is not None and self._answer is not None
        if len(body) <= _WHOLE:
            self.transport.write(head + body)
            return True
        self.transport.write(head)
        view = memoryview(body)
        for begin in range(0, len(view), _WHOLE):
            if self._writable is not None:
                either: set[asyncio.Future[Any]] = {self._writable, self._answer}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._answer.done() or self.transport.is_closing():
                return False
            self.transport.write(view[begin : begin + _WHOLE])
        return True

    def end_sending(self) -> bool:
        """Tell the server that no more will be sent, and go on reading. False where that cannot be said: in TLS."""
        if self.transport is None or self.transport.is_closing() or not self.transport.can_write_eof():
            return False
        self.transport.write_eof()
        return True

    def close(self, why: str = "ended from here", cause: Exception | None = None) -> None:
        """End the connection, and with it a request whose reply is not whole. At once: TLS would wait for its peer."""
        status = self._parser.get_status_code() if self.replying else None
        self.replying = False
        if self._answer is not None and not self._answer.done():
            error = Interrupted(why, begun=self._begun, status=status)
            error.__cause__ = cause
            self._answer.set_exception(error)
        if self.transport is not None:
            self.transport.abort()

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As in asyncio.Protocol."""
        self.transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        """As in asyncio.Protocol."""
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """As in asyncio.Protocol."""
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def data_received(self, data: bytes) -> None:
        """As in asyncio.Protocol."""
        if self._answer is None or self._answer.done():  # nobody asked: a server that says why it will close, say
            self.close()
            return
        self._begun, self.heard_at = True, time.monotonic()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.close(f"what the server sent is not HTTP ({error})")
            return
        if self._surplus:
            self.close()
        elif self.replying and self._rest_s is not None and self._cut is None:
            self._cut = asyncio.get_running_loop().call_later(self._rest_s, self.close, "the reply did not end")

    def connection_lost(self, exc: Exception | None) -> None:
        """As in asyncio.Protocol."""
        if self.replying and exc is None and not self._has_a_length():
            self._settle()
        else:
            self.close("the server has ended the connection" + (f" ({exc})" if exc else ""), exc)

    # Called by the parser

    def on_message_begin(self) -> None:
        """As httptools wants it."""
        self._reason, self._headers, self._body = b"", {}, []
        self._surplus = self._answer is None or self._answer.done()

    def on_status(self, reason: bytes) -> None:
        """As httptools wants it."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """As httptools wants it."""
        if not self.replying:  # else it is a trailer
            self._headers[name.decode("latin-1").lower()] = value.decode(errors="replace")

    def on_headers_complete(self) -> None:
        """As httptools wants it."""
        self.replying = self._parser.get_status_code() >= 200  # what comes before is no reply yet

    def on_body(self, part: bytes) -> None:
        """As httptools wants it."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """As httptools wants it."""
        if self.replying:
            keeps = self._parser.should_keep_alive()
            self._settle()
            if not keeps:
                self.close()

    def _has_a_length(self) -> bool:
        return "content-length" in self._headers or "chunked" in self._headers.get("transfer-encoding", "").lower()

    def _settle(self) -> None:
        parts, self._body = self._body, []  # which may be large, and this connection idle for long
        if self._answer is not None and not self._answer.done():
            try:
                body = self._inflated(b"".join(parts))
            except zlib.error as error:
                self.close(f"the reply is not compressed as it says ({error})")
                return
            status = self._parser.get_status_code()
            self._answer.set_result(Reply(status, self._reason.decode("latin-1"), self._headers, body))
        self.replying = False

    def _inflated(self, body: bytes) -> bytes:
        if self._headers.get("content-encoding", "").lower() not in _COMPRESSED:
            return body
        try:
            return _inflate(body, 32 + zlib.MAX_WBITS)  # either header
        except zlib.error:
            return _inflate(body, -zlib.MAX_WBITS)  # none, which some servers call deflate


def _inflate(body: bytes, wbits: int) -> bytes:
    """What the members of `body` hold, one after the other. Raises zlib.error."""
    found = []
    while body:
        member = zlib.decompressobj(wbits)
        found.append(member.decompress(body))
        if not member.eof:
            raise zlib.error("it is cut off")
        body = member.unused_data
    return b"".join(found)
