"""Reads the authorities of engine/fetching/authorities.py when a connection to RunPod needs them, not at boot.

All 140 authorities of a Debian are 20 to 40 ms of CPU time. So they are read with the first connection: one by one
where the machine's folder of authorities can be searched (0.2 ms), and all of them where it cannot, or holds too few.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from engine.fetching import authorities

_searching: list[ssl.SSLContext] = []
"""Those that know a folder and nothing else."""

_advised: list[str] = []


@cache
def context() -> ssl.SSLContext:
    """For connections to RunPod, verified."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.set_alpn_protocols(["http/1.1"])
    if folder := authorities.folder_to_search():
        made.load_verify_locations(capath=folder)
        _searching.append(made)
    else:
        authorities.load(made)
    return made


@contextmanager
def at_once() -> Iterator[None]:
    """Contexts that the SDK's libraries make meanwhile read them all, and certifi's where that is the rule."""
    # The types forbid to replace a method, which is the purpose: aiohttp offers no other way in while it is imported.
    ssl.SSLContext.set_default_verify_paths = authorities.load  # type: ignore[assignment, method-assign]
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
