"""Connections to RunPod: opened ahead of need, kept between requests, and given up when nobody is there any more.

To open one takes two round trips or three, names, TCP and TLS, which may be longer than a job. So they are opened while
the engine loads, and while the first job after a pause runs.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple, cast
from urllib.parse import quote, urljoin, urlsplit

from aiohappyeyeballs import AddrInfoType, start_connection

from handler.protocol import names, trust
from handler.protocol.http1 import Connection, Interrupted, Reply

AHEAD_S = 5.0
"""For which whoever needs a connection waits for one that is being opened; then it opens its own."""

_CONNECT_S = 30.0
_OTHER_ADDRESS_S = 0.25  # RFC 8305, "Happy Eyeballs": before the next of a host's addresses is tried beside
_KEPT_S = 240.0  # idle; a server that wants to end it sooner does
# Else a packet filter forgets a connection over which nothing was sent for a minute or five, and tells nobody.
_PROBE_AFTER_S, _PROBE_EVERY_S, _PROBES = 30, 10, 3
# What was sent and not acknowledged for so long is an error, and tried again: a request into such a connection would
# wait for its whole time limit.
_UNACKNOWLEDGED_MS = 30_000
_SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
_FORWARDS = (301, 302, 303, 307, 308)
_MOST_FORWARDS = 10
_SAFE = "/?:@!$&'()*+,;=-._~%"  # what may stand in a path and a query, RFC 3986
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


class Origin(NamedTuple):
    """Where a connection leads."""

    is_tls: bool
    host: str
    port: int


class Client:
    """Requests with the same headers, on as many connections as are under way at once."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        lines = {name: f"{name}: {_CONTROL.sub(' ', value)}\r\n" for name, value in headers.items()}
        self._key = lines.pop("Authorization", "")
        self._lines = "Accept: */*\r\n" + "".join(lines.values())
        self._idle: dict[Origin, list[Connection]] = {}
        """Those that are kept, longest first."""
        self._is_swept = False
        self.leaving = False
        """Open no connection any more."""

    async def get(self, url: str, on_connection: Callable[[Connection], None] = lambda connection: None) -> Reply:
        """The reply to a GET, or to the one that it leads on to; `on_connection` is told over what it goes.

        Sent again where a kept connection ends under it. Raises OSError (ssl.SSLError and Interrupted are), ValueError
        for what is no address.
        """
        origin, target = _parts(url)
        own = origin
        for _ in range(_MOST_FORWARDS):
            head = self._head(f"GET {target}", origin, own)
            reply = await self._get(origin, head, on_connection)
            forward = reply.headers.get("location")
            if reply.status not in _FORWARDS or not forward:
                return reply
            url, origin, target = _forwarded(url, forward)
        raise Interrupted(f"redirected more than {_MOST_FORWARDS} times")

    async def _get(self, origin: Origin, head: bytes, on_connection: Callable[[Connection], None]) -> Reply:
        while True:
            kept = self._kept(origin)
            connection = kept or await self._open(origin)
            on_connection(connection)
            try:
                reply = await connection.ask(head)
            except Interrupted as error:
                if error.begun or kept is None:
                    raise
            else:
                self._keep(origin, connection)
                return reply

    async def post(self, url: str, body: bytes, headers: str = "", *, rest_s: float | None = None) -> int:
        """The status of the reply to a POST, which decides, whatever becomes of its rest: that gets `rest_s` seconds.

        `headers` are further lines, each with its end. Raises as `get` does, and Interrupted where it is sent elsewhere
        as something that is no POST.
        """
        origin, target = _parts(url)
        own = origin
        for _ in range(_MOST_FORWARDS):
            head = self._head(f"POST {target}", origin, own, f"Content-Length: {len(body)}\r\n{headers}")
            connection = self._kept(origin) or await self._open(origin)
            try:
                reply = await connection.ask(head, body, rest_s=rest_s)
            except Interrupted as error:
                if error.status is None or error.status in _FORWARDS:
                    raise
                return error.status
            self._keep(origin, connection)
            forward = reply.headers.get("location")
            if reply.status not in _FORWARDS or not forward:
                return reply.status
            url, origin, target = _forwarded(url, forward)
            if reply.status < 307:  # as a GET, which loses the body
                raise Interrupted(f"redirected to {origin.host}")
        raise Interrupted(f"redirected more than {_MOST_FORWARDS} times")

    async def open_ahead(self, url: str) -> None:
        """See that an idle connection to where `url` is is kept. What fails is told by the request that comes."""
        with suppress(Exception):
            origin, _ = _parts(url)
            if (connection := self._kept(origin)) is None:
                connection = await self._open(origin)
            self._keep(origin, connection)

    def close(self) -> None:
        """Close the connections that are idle."""
        self.leaving = True
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def _keep(self, origin: Origin, connection: Connection) -> None:
        if self.leaving:
            connection.close()
        elif connection.is_open:
            connection.idle_since = time.monotonic()
            self._idle.setdefault(origin, []).append(connection)
            if not self._is_swept:
                self._is_swept = True
                asyncio.get_running_loop().call_later(_KEPT_S, self._end_idle)

    def _end_idle(self) -> None:
        """End those that a burst left behind and nobody needed since, again and again while any is kept."""
        ended = time.monotonic() - _KEPT_S
        for connections in self._idle.values():
            while connections and connections[0].idle_since <= ended:
                connections.pop(0).close()
        self._is_swept = any(self._idle.values())
        if self._is_swept:
            asyncio.get_running_loop().call_later(_KEPT_S, self._end_idle)

    def _kept(self, origin: Origin) -> Connection | None:
        """The one that was used last, for what is used least is ended first."""
        connections = self._idle.get(origin, ())
        while connections and not self.leaving:
            connection = connections.pop()
            if connection.is_open and time.monotonic() - connection.idle_since < _KEPT_S:
                return connection
            connection.close()
        return None

    async def _open(self, origin: Origin) -> Connection:
        if self.leaving:
            raise Interrupted("leaving")
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_S):
            found_at = await names.addresses(origin.host, origin.port)
            # Not by create_connection: uvloop's tries an address only when the one before has refused.
            found = await start_connection(
                found_at, happy_eyeballs_delay=_OTHER_ADDRESS_S, loop=cast(Any, _Connecting), socket_factory=_socket
            )
            try:
                _, connection = await loop.create_connection(
                    Connection,
                    sock=found,
                    ssl=trust.context() if origin.is_tls else None,
                    server_hostname=origin.host.rstrip(".") if origin.is_tls else None,
                )
            except BaseException:
                found.close()
                raise
        if self.leaving:  # since then: what is asked now nobody would wait for
            connection.close()
            raise Interrupted("leaving")
        return connection

    def _head(self, request: str, origin: Origin, own: Origin, more: str = "") -> bytes:
        """`request` is the method and the target, `more` further header lines; `own` is where the key is known."""
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        port = "" if origin.port == (443 if origin.is_tls else 80) else f":{origin.port}"
        key = self._key if origin == own else ""  # another host gets to know nothing
        return f"{request} HTTP/1.1\r\nHost: {host}{port}\r\n{self._lines}{key}{more}\r\n".encode()


class _Connecting:
    """What start_connection asks of a loop. uvloop's own has every address looked up in threads that libuv starts then.

    And where there may be no further thread, libuv ends the process without a word.
    """

    @staticmethod
    async def sock_connect(sock: socket.socket, address: Any) -> None:
        """As a loop's. Raises OSError."""
        try:
            sock.connect(address)
        except BlockingIOError:
            pass  # it is under way
        else:
            return
        loop = asyncio.get_running_loop()
        writable = asyncio.Event()
        loop.add_writer(sock, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(sock)
        if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, f"Connect call failed {address}")


def _socket(address: AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    for level, option, value in _SOCKET_OPTIONS:
        with suppress(OSError):  # a sandbox that does not know it
            made.setsockopt(level, option, value)
    return made


def _parts(url: str) -> tuple[Origin, str]:
    """Where to connect, and what to ask for there. Raises ValueError."""
    scheme, _, rest = url.partition("://")
    netloc, _, target = rest.partition("/")
    if "#" in rest or "?" in netloc:  # rare, and urlsplit takes as long as all the rest
        parts = urlsplit(url)
        scheme, netloc = parts.scheme, parts.netloc
        target = parts.path.removeprefix("/") + (f"?{parts.query}" if parts.query else "")
    return _origin(scheme, netloc), f"/{quote(target, safe=_SAFE)}"


def _forwarded(url: str, to: str) -> tuple[str, Origin, str]:
    """Where a reply leads on to, and its parts. Raises Interrupted where that is no address."""
    try:
        url = urljoin(url, to)
        return url, *_parts(url)
    except ValueError as error:
        raise Interrupted(f"redirected to {to[:200]!r}, which is no address") from error


@lru_cache
def _origin(scheme: str, netloc: str) -> Origin:
    parts = urlsplit(f"{scheme}://{netloc}")
    if scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{scheme}://{netloc} is not an address")
    is_tls = scheme == "https"
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    return Origin(is_tls, host, parts.port or (443 if is_tls else 80))
