"""Names of hosts become addresses, in threads of our own.

uvloop asks in libuv's pool: two at a time, first come first served, behind questions that nobody waits for any more;
and it closes only when all are answered. Where the first name server is silent, each takes seconds: results that are
sent at once would use up each other's time, and a worker would not end. And where there may be no further thread for
that pool, libuv ends the process.
"""

from __future__ import annotations

import asyncio
import socket
import time
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

from aiohappyeyeballs import AddrInfoType

from engine.daemon import in_daemon

_FRESH_S = 1.0
"""For which an answer is good: who waited for another one's connection until now asks next."""

_asked: dict[tuple[str, int], Future[list[AddrInfoType]]] = {}
_answers: dict[tuple[str, int], tuple[float, list[AddrInfoType]]] = {}
"""With the end of their time, on the clock time.monotonic."""


async def addresses(host: str, port: int) -> list[AddrInfoType]:
    """Where `host`, which is in ASCII, is reached; whoever asks meanwhile gets the same answer.

    Raises OSError, RuntimeError where there is no thread for it. Who gives up waiting ends nothing: who tries again
    finds the question as far as it is.
    """
    with suppress(socket.gaierror):
        return _resolve(host, port, socket.AI_NUMERICHOST)
    key = host, port
    until, answer = _answers.get(key, (0.0, []))
    if time.monotonic() < until:
        return answer
    if (asked := _asked.get(key)) is None:
        asked = _asked[key] = in_daemon(partial(_resolve, host, port), "resolve")
        asked.add_done_callback(partial(_answered, key))
    return await asyncio.wrap_future(asked)


def _answered(key: tuple[str, int], asked: Future[list[AddrInfoType]]) -> None:
    if asked.exception() is None:
        _answers[key] = time.monotonic() + _FRESH_S, asked.result()
    del _asked[key]


def _resolve(host: str, port: int, flags: int = 0) -> list[AddrInfoType]:
    # As bytes: for a string Python loads its tables for other alphabets.
    return list(socket.getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM, flags=flags))
