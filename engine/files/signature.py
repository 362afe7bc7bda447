"""Who made a bundle: an Ed25519 signature over manifest.json, which holds the SHA-256 of every other file.

    manifest.sig    64 bytes in base64, one line

Plain Ed25519 (RFC 8032) over the file's bytes, so that `openssl pkeyutl -verify -rawin` can check it as well. The
library is imported when there is something to check: a worker without BUNDLE_PUBLIC_KEY boots without it.
"""

from __future__ import annotations

import base64
from pathlib import Path

from engine.bundle import SIGNATURE
from engine.errors import BundleError, ConfigError

_KEY_BYTES = 32


def check_signature(folder: Path, manifest: bytes, public_key: str) -> None:
    """Raise BundleError unless `folder` holds a signature of `manifest` by the owner of `public_key`.

    `public_key` is base64 of the 32 bytes, as `python -m export keygen` prints it. Raises ConfigError when it is not.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key = Ed25519PublicKey.from_public_bytes(read_public_key(public_key))
    try:
        text = (folder / SIGNATURE).read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        raise BundleError(f"{folder} is not signed; {_SIGN}") from None
    except OSError as error:
        raise BundleError(f"{folder / SIGNATURE} cannot be read ({error.strerror}); {_SIGN}") from error
    try:
        key.verify(_decoded(text), manifest)
    except (InvalidSignature, ValueError):
        raise BundleError(
            f"{folder / SIGNATURE} is not a signature of this bundle by BUNDLE_PUBLIC_KEY: the bundle was changed, or "
            f"another key signed it; {_SIGN}"
        ) from None


_SIGN = "sign it with `python -m export sign BUNDLE --key KEY`, or leave out BUNDLE_PUBLIC_KEY"


def read_public_key(text: str) -> bytes:
    """The 32 bytes of a public key. Raises ConfigError when `text` is not base64 of as many."""
    try:
        key = _decoded(text)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise ConfigError(
            f"BUNDLE_PUBLIC_KEY={text[:80]!r} is not allowed; set it to what `python -m export keygen` printed, or "
            "leave it out for no check"
        )
    return key


def _decoded(text: str) -> bytes:
    """Raises ValueError, of which binascii's error is one."""
    return base64.b64decode(text.strip(), validate=True)
