"""`python -m export keygen | sign | verify`: who made a bundle, and whether it is still what they made."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from engine.bundle import MANIFEST, SIGNATURE, open_bundle
from engine.errors import BundleError, ConfigError
from export.command.arguments import Parser, file_path, read_file
from export.command.exit_codes import OK
from export.command.outcome import Outcome
from export.command.terminal import without_effect
from export.command.whole_file import write_whole
from export.errors import Refused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_VARIABLE = "BUNDLE_PUBLIC_KEY"
_MOST_MB = 1
_MAKE_ONE = "make one with `python -m export keygen --key FILE`"


def keygen(argv: Sequence[str]) -> Outcome:
    """Write a new private key and print the public one. Raises Refused when the file is there already."""
    parser = _Parser("keygen", "Make a key pair: the private key into a file, the public key on the screen.")
    parser.add_argument(
        "--key", required=True, type=file_path, metavar="FILE", help="new file for the private key (PEM)"
    )
    path: Path = parser.parse_args(argv).key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        write_whole(path, private, mode=0o600, replaces=False)
    except FileExistsError:
        if path.is_dir():
            raise Refused(f"{path} is a folder; name a new file in it with --key") from None
        raise Refused(f"{path} exists; name another file with --key, or remove it first") from None
    except FileNotFoundError:
        raise Refused(f"{path.parent} is not a folder; make it first, or name another file with --key") from None
    with without_effect():
        print(f"{_VARIABLE}={_public_key(key)}")
    return Outcome(OK)


def sign(argv: Sequence[str]) -> Outcome:
    """Check every file of a bundle, then sign its manifest. Raises Refused or BundleError."""
    parser = _Parser("sign", "Sign a bundle, after every file in it was compared with its SHA-256.")
    parser.add_bundle()
    parser.add_argument("--key", required=True, type=file_path, metavar="FILE", help="private key that keygen wrote")
    asked = parser.parse_args(argv)
    key = _read_private_key(asked.key)
    open_bundle(asked.bundle).verify()
    sign_manifest(asked.bundle, key)
    with without_effect():
        print(f"signed    {asked.bundle / SIGNATURE}")
        print(f"serve     {_VARIABLE}={_public_key(key)} BUNDLE={quote(str(asked.bundle))}")
    return Outcome(OK)


def sign_manifest(folder: Path, key: Ed25519PrivateKey) -> None:
    """Write the signature beside the manifest; the file is whole or absent."""
    signature = base64.b64encode(key.sign((folder / MANIFEST).read_bytes()))
    write_whole(folder / SIGNATURE, signature + b"\n")


def verify(argv: Sequence[str]) -> Outcome:
    """Check every file of a bundle, and its signature where a key is given. Raises Refused or BundleError."""
    parser = _Parser("verify", "Compare every file of a bundle with its SHA-256, and check who signed it.")
    parser.add_bundle()
    parser.add_argument(
        "--public-key",
        metavar="KEY",
        help=f"of whoever must have signed it (default: {_VARIABLE}; without either, only hashes are checked)",
    )
    asked = parser.parse_args(argv)
    is_named = asked.public_key is not None
    key = asked.public_key if is_named else os.environ.get(_VARIABLE, "")
    try:
        bundle = open_bundle(asked.bundle, public_key=key)
    except (BundleError, ConfigError) as error:
        raise Refused(str(error).replace(_VARIABLE, "--public-key") if is_named else str(error)) from None
    bundle.verify()
    signed = f"signed by {key}" if key else "signature not checked: no public key was given"
    with without_effect():
        print(f"{len(bundle.manifest.files)} files match the manifest\nsha256    {bundle.sha256}\n{signed}")
    return Outcome(OK)


def _read_private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_file(path, _MOST_MB).encode(), password=None)
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); {_MAKE_ONE}") from None
    except (ValueError, TypeError):
        raise Refused(f"{path} is not a private key without a password; {_MAKE_ONE}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Refused(f"{path} is not an Ed25519 key; {_MAKE_ONE}")
    return key


def _public_key(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


class _Parser(Parser):
    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"python -m export {command}",
            description=description,
            epilog="Exit codes: 0 done, 2 refused, 3 a package or the disk is missing, 4 a defect, 130 interrupted. "
            "What is not 0 has one sentence that says why.",
        )
