"""TCP connections to RunPod: opened ahead of need, kept between jobs, and given up when nobody is there any more.

To open one takes two round trips or three, names, TCP and TLS, which may be longer than a job. So they are opened while
the engine loads, and while the first job after a pause runs.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import aiohttp
from aiohappyeyeballs import AddrInfoType
from yarl import URL

AHEAD_S = 5.0
"""For which whoever needs a connection waits for one that is being opened; then it opens its own."""

_KEPT_S = 240.0  # idle; a server that wants to end it sooner does
# Else a packet filter forgets a connection over which nothing was sent for a minute or five, and tells nobody.
_PROBE_AFTER_S, _PROBE_EVERY_S, _PROBES = 30, 10, 3
# What was sent and not acknowledged for so long is an error, and tried again: a request into such a connection would
# wait for its whole time limit.
_UNACKNOWLEDGED_MS = 30_000
_CONNECT = aiohttp.ClientTimeout(connect=30)


class Connector(aiohttp.TCPConnector):
    """As many connections as are asked for."""

    def __init__(self) -> None:
        super().__init__(limit=0, keepalive_timeout=_KEPT_S, socket_factory=_socket)


async def open_ahead(session: aiohttp.ClientSession, url: str) -> None:
    """See that `session` keeps an idle connection to where `url` is. What fails is told by the request that comes."""
    with suppress(Exception):
        request = aiohttp.ClientRequest("GET", URL(url), session=session, loop=asyncio.get_running_loop())
        assert session.connector is not None
        (await session.connector.connect(request, [], _CONNECT)).release()


def _socket(address: AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS),
    ):
        with suppress(OSError):  # a sandbox that does not know it
            made.setsockopt(level, option, value)
    return made
