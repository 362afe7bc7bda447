"""Reads the authorities of engine/authorities.py when a connection to RunPod needs them, not at boot.

aiohttp makes two TLS contexts while it is imported, of which one is ever used, and each reads all 140 authorities of a
Debian: 20 to 40 ms of CPU time each. A context of `later` reads them with its first connection: one by one where the
machine's folder of authorities can be searched (0.2 ms), and all of them where it cannot, or holds too few.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from engine import authorities

_searching: list[ssl.SSLContext] = []
"""Those that know a folder and nothing else."""

_advised: list[str] = []


class _Later(ssl.SSLContext):
    """Trusts nobody yet."""

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """As in the base class; asyncio connects through it."""
        _read(self)
        return ssl.SSLContext.wrap_bio(self, *args, **kwargs)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """As in the base class."""
        _read(self)
        return ssl.SSLContext.wrap_socket(self, *args, **kwargs)


def later() -> AbstractContextManager[None]:
    """Contexts that are made meanwhile read the machine's authorities when they are first used."""

    def postpone(context: ssl.SSLContext) -> None:
        context.__class__ = _Later

    return _reading(postpone)


def at_once() -> AbstractContextManager[None]:
    """Contexts that are made meanwhile read them all, and certifi's where that is the rule."""
    return _reading(authorities.load)


@contextmanager
def _reading(read: Callable[[ssl.SSLContext], None]) -> Iterator[None]:
    # The types forbid to replace a method, which is the purpose: aiohttp offers no other way in while it is imported.
    ssl.SSLContext.set_default_verify_paths = read  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del ssl.SSLContext.set_default_verify_paths  # what was there is the base class's


def read_all() -> None:
    """For contexts that met a certificate which they do not trust: the authorities that their folder does not have."""
    while _searching:
        authorities.load(_searching.pop())


def advice(error: Exception) -> str:
    """What helps against a certificate that nobody trusted has signed, once, and when all were read; else empty."""
    if _searching or _advised or not (advice := authorities.advice(error)):
        return ""
    _advised.append(advice)
    return advice


def _read(context: ssl.SSLContext) -> None:
    if folder := authorities.folder_to_search():
        context.load_verify_locations(capath=folder)
        _searching.append(context)
    else:
        authorities.load(context)
    context.__class__ = ssl.SSLContext
