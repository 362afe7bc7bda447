"""Which authorities TLS trusts: the one rule, for RunPod's API and pings, for BUNDLE_URL and for the URLs in jobs.

Those of the machine, where OpenSSL looks for them: in a file and in a folder, which SSL_CERT_FILE and SSL_CERT_DIR
name. A machine that has neither, such as a bare Debian or Ubuntu, gets certifi's; not where one of the two variables
is set, for who names authorities means no others.
"""

from __future__ import annotations

import os
import re
import ssl
from contextlib import suppress
from functools import cache

_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")  # how OpenSSL finds an authority in a folder: `openssl rehash`
_UNKNOWN = (18, 19, 20, 21)  # X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT and those behind it, x509_vfy.h


@cache
def client_context() -> ssl.SSLContext:
    """For connections to servers, verified. The first call reads all authorities, 20 ms or more: not for a boot."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load(context)
    return context


def load(context: ssl.SSLContext) -> None:
    """Let `context` trust whom the rule above says."""
    (file, file_is_named), (folder, folder_is_named) = _file(), _folder()
    with suppress(OSError):  # none there, or one that holds something else
        context.load_verify_locations(cafile=file)
    context.load_verify_locations(capath=folder)
    is_empty = not context.cert_store_stats()["x509"] and not _can_be_searched(folder)
    if is_empty and not (file_is_named or folder_is_named):
        import certifi

        context.load_verify_locations(certifi.where())


def folder_to_search() -> str | None:
    """A folder whose authorities OpenSSL reads one by one, as it needs them; None where `load` is to read them all."""
    folder, _ = _folder()
    return folder if not _file()[1] and _can_be_searched(folder) else None


def advice(error: object) -> str:
    """What helps where `error` says that nobody who is trusted has signed a certificate, else empty."""
    if getattr(error, "verify_code", 0) not in _UNKNOWN:
        return ""
    return (
        f"the worker trusts the authorities of this machine, which are in {_file()[0]} (SSL_CERT_FILE) and "
        f"{_folder()[0]} (SSL_CERT_DIR); install ca-certificates, or have SSL_CERT_FILE name a file with the one that "
        "signed it"
    )


def _file() -> tuple[str, bool]:
    """Its path, and whether a variable names it; one that is empty does not."""
    named = os.environ.get("SSL_CERT_FILE")
    return named or ssl.get_default_verify_paths().openssl_cafile, bool(named)


def _folder() -> tuple[str, bool]:
    named = os.environ.get("SSL_CERT_DIR")
    return named or ssl.get_default_verify_paths().openssl_capath, bool(named)


def _can_be_searched(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            # Links that lead nowhere are what is left where only this folder was copied into an image.
            return any(_HASHED.fullmatch(entry.name) and entry.is_file() for entry in entries)
    except OSError:
        return False
