"""Whose certificates TLS trusts: read when a connection needs them, not at boot.

aiohttp makes two TLS contexts while it is imported, of which one is ever used, and each reads all 140 authorities of a
Debian: 20 to 40 ms of CPU time each. A context of `later` reads them with its first connection: one by one where the
machine's folder of authorities can be searched (0.2 ms), and all of them where it cannot, or holds too few. A machine
that has none at all, such as a bare Debian or Ubuntu, gets certifi's, which the SDK's pings go by anyway.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")  # how OpenSSL finds an authority in a folder: `openssl rehash`

_UNKNOWN = (18, 19, 20, 21)  # X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT and those behind it, x509_vfy.h

_searching: list[ssl.SSLContext] = []
"""Those that know a folder and nothing else."""

_advised: list[Exception] = []


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


@contextmanager
def later() -> Iterator[None]:
    """Contexts that are made meanwhile read the machine's authorities when they are first used."""

    def postpone(context: ssl.SSLContext) -> None:
        context.__class__ = _Later

    # The types forbid to replace a method, which is the purpose: aiohttp offers no other way in while it is imported.
    ssl.SSLContext.set_default_verify_paths = postpone  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del ssl.SSLContext.set_default_verify_paths  # what was there is the base class's


def read_all() -> None:
    """For contexts that met a certificate which they do not trust: the authorities that their folder does not have."""
    while _searching:
        _searching.pop().load_default_certs()


def advice(error: Exception) -> str:
    """What helps where `error` says that nobody who is trusted has signed a certificate; once, and empty otherwise."""
    if _searching or _advised or getattr(error, "verify_code", 0) not in _UNKNOWN:
        return ""
    _advised.append(error)
    named = ssl.get_default_verify_paths()
    return (
        "the worker trusts the authorities of this machine, which are in "
        f"{os.environ.get(named.openssl_cafile_env) or named.openssl_cafile} ({named.openssl_cafile_env}) and "
        f"{os.environ.get(named.openssl_capath_env) or named.openssl_capath} ({named.openssl_capath_env}); install "
        "ca-certificates, or have SSL_CERT_FILE name a file with the one that signed it"
    )


def _read(context: ssl.SSLContext) -> None:
    folder = ssl.get_default_verify_paths().capath
    if "SSL_CERT_FILE" not in os.environ and folder is not None and _can_be_searched(folder):
        context.load_verify_locations(capath=folder)
        _searching.append(context)
    else:
        context.load_default_certs()
        if not (context.get_ca_certs() or {"SSL_CERT_FILE", "SSL_CERT_DIR"} & os.environ.keys()):
            import certifi

            context.load_verify_locations(certifi.where())
    context.__class__ = ssl.SSLContext


def _can_be_searched(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            # Links that lead nowhere are what is left where only this folder was copied into an image.
            return any(_HASHED.fullmatch(entry.name) and entry.is_file() for entry in entries)
    except OSError:
        return False
