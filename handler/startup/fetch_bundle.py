"""A bundle from a tar behind an https address: streamed to disk, compared with its hash, renamed into place.

Workers that share a volume take turns: the first fetches, the others find the folder. Where the volume knows no locks
each fetches for itself, and the first to finish wins; nobody ever sees half a bundle.
"""

from __future__ import annotations

import errno
import http.client
import io
import os
import re
import shutil
import socket
import ssl
import tarfile
import time
import urllib.error
import urllib.request
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.parse import urlsplit

from engine.bundle import MANIFEST, open_bundle
from engine.config import shown
from engine.errors import BundleError, ConfigError
from engine.fetching.authorities import advice, client_context
from engine.files.turns import is_abandoned, mark, turn
from engine.sizes import readable
from handler.log import Progress, log
from handler.processes import signals
from handler.startup.unpack import unpack

_ATTEMPTS = 3
_SILENCE_S = 30.0  # of a server, before the attempt counts as failed
_TURN_S = 400.0  # to wait for another worker; RunPod gives up on a worker that takes longer than 7 minutes to start
_PARTIAL = re.compile(r"\.[0-9a-f]{64}\.partial-")
# What a server, or a connection, makes of a reply; ValueError is http.client's for a chunk of negative size.
_BROKEN = (
    *(urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError),
    *(tarfile.TarError, EOFError, ValueError),
)
_TEMPORARY = (408, 425, 429)
_HERE = ("localhost", "127.0.0.1", "::1")

Copy: TypeAlias = "tuple[int, int, int]"
"""One copy of a bundle, as opposed to another at the same place: device, number and time of its folder."""


def fetch(url: str, sha256: str, folder: Path) -> None:
    """Make `folder` the bundle whose manifest has `sha256`, from the tar (plain, gz, bz2 or xz) at `url`.

    Raises ConfigError when the address is no good, BundleError when nothing, or another bundle, is behind it.
    """
    if fault := _fault(url):
        raise ConfigError(f"BUNDLE_URL={shown(url)!r} {fault}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _turn(folder, _TURN_S) as is_held:
            _remove_abandoned(folder, is_held)
            if not is_bundle(folder, sha256):
                _fetch(url, sha256, folder)
    except OSError as error:
        raise BundleError(
            f"{folder.parent} cannot hold the bundle ({error.strerror}); point BUNDLE_CACHE to a folder with room that "
            "the worker may write to"
        ) from error


def tidy(folder: Path) -> None:
    """Remove what killed workers left beside a bundle that is there, unless another worker is about it."""
    with suppress(OSError, BundleError):
        if _partials(folder):
            with _turn(folder, 0) as is_held:
                _remove_abandoned(folder, is_held)


def _fault(url: str) -> str:
    """What is wrong with an address, as the rest of a sentence; empty when nothing is."""
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and parts.port != 0 and re.fullmatch(r"[!-~]+", url)
    except ValueError:
        is_whole = False
    if not is_whole:  # http.client would say so too, and show all of the query
        return "is malformed; write it in ASCII, with other characters percent-encoded"
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _HERE):
        return "is not allowed; set it to an https:// address of a tar"
    if parts.username is not None:  # urllib would take the password for a port, and say which
        return "has a user name, which is not sent; set it to a signed address"
    return ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to what BUNDLE_URL may be itself: urllib would also go to plain http, and to ftp."""

    def __init__(self, url: str) -> None:
        self.asked = url
        """The last address."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """As in the base class. Raises BundleError."""
        if fault := _fault(newurl):
            fp.close()
            raise BundleError(f"{_shown(req.full_url)} redirects to {shown(newurl)}, which {fault}")
        self.asked = newurl
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_bundle(folder: Path, sha256: str) -> bool:
    """Whether `folder` holds that bundle, and all of every file: the content of each is compared at every boot."""
    try:
        bundle = open_bundle(folder, sha256=sha256)
        return all((folder / name).stat().st_size == size for name, (size, _) in bundle.manifest.files.items())
    except (BundleError, OSError):
        return False


def copy_in(folder: Path) -> Copy | None:
    """Which copy of the bundle lies there, to be asked before it is opened; None where there is none.

    With its time, for the next copy may get the number of one that was removed.
    """
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def discard(folder: Path, damaged: Copy) -> bool:
    """Take the damaged copy out of the way, and no other; False where another worker has done so meanwhile.

    Raises OSError, or BundleError as `fetch` does while it waits for its turn.
    """
    if copy_in(folder) != damaged:  # perhaps it is being fetched again: not waited for
        return False
    with _turn(folder, _TURN_S):
        is_there = copy_in(folder) == damaged
        if is_there:
            _remove(folder)
    return is_there


def _remove(folder: Path) -> None:
    """In one step; whoever has its files open keeps them."""
    aside = folder.with_name(f".{folder.name}.partial-{mark()}")
    os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _fetch(url: str, sha256: str, folder: Path) -> None:
    begin = time.monotonic()
    partial = folder.with_name(f".{folder.name}.partial-{mark()}")
    with signals.cleaning_up(lambda: shutil.rmtree(partial, ignore_errors=True)):
        partial.mkdir(0o700)
        log("INFO", f"fetching the bundle from {_shown(url)}")
        size = _download(url, sha256, partial)
        root = _root(partial, url)
        open_bundle(root, sha256=sha256).verify()
        root.chmod(0o755)
        _put(root, folder, sha256)
        log("INFO", f"fetched {readable(size)}", seconds=round(time.monotonic() - begin, 1))


def _download(url: str, sha256: str, partial: Path) -> int:
    """Unpack the bundle behind `url` into `partial`, trying again when the network fails; bytes written."""
    redirects = _Redirects(url)
    opener = urllib.request.build_opener(redirects, urllib.request.HTTPSHandler(context=client_context()))
    for attempt in range(1, _ATTEMPTS + 1):
        redirects.asked = url
        try:
            with opener.open(url, timeout=_SILENCE_S) as reply:
                return unpack(_Reply(reply, reply.length), partial, sha256, reply.length)
        except _BROKEN as error:
            is_refused = isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)
            if isinstance(error, urllib.error.HTTPError):
                is_refused = error.code < 500 and error.code not in _TEMPORARY
                error.close()
            what, fix = _told(error, redirects.asked)
            if is_refused or attempt == _ATTEMPTS:
                raise BundleError(f"{_shown(url)} cannot be fetched ({what}); {fix}") from error
            log("WARN", f"fetching the bundle failed ({what}); trying again")
            time.sleep(attempt)
            _empty(partial)
    raise AssertionError("unreachable")


def _told(error: Exception, url: str) -> tuple[str, str]:
    """What happened while `url` was asked for, and what to do."""
    host = urlsplit(url).netloc
    if isinstance(error, urllib.error.HTTPError):
        if error.code in (401, 403):
            return str(error), "see that the signature in BUNDLE_URL is whole and has not expired"
        is_later = error.code >= 500 or error.code in _TEMPORARY
        return str(error), f"start again when {host} is well" if is_later else "see that BUNDLE_URL is right"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    asked, reachable = host, f"see that BUNDLE_URL is right and that {host} can be reached from here"
    if proxy := _proxy(url):
        asked, reachable = proxy, f"{reachable} through that proxy, or name it in no_proxy"
    if isinstance(reason, socket.gaierror | UnicodeError):  # the latter for a label of more than 63 characters
        return f"no address of {asked} was found: {getattr(reason, 'strerror', reason)}", reachable
    if isinstance(reason, TimeoutError):
        return f"{asked} did not answer: {reason.strerror or f'nothing for {_SILENCE_S:g} s'}", reachable
    if isinstance(reason, ssl.SSLCertVerificationError):
        return str(reason), advice(reason) or f"see that BUNDLE_URL is right, and the certificate of {host}"
    if isinstance(reason, ssl.SSLError) and not isinstance(reason, ssl.SSLEOFError):
        return str(reason), f"see that BUNDLE_URL is right and that {host} takes https"
    if isinstance(reason, OSError):
        return f"{asked}: {reason.strerror or reason}", reachable
    return str(reason), "see that BUNDLE_URL is a whole tar"


def _proxy(url: str) -> str:
    """The proxy that urllib asks for `url`, and which variable names it; empty without one."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return ""
    return f"the proxy {shown(proxy)} of {parts.scheme}_proxy"


class _Reply(io.RawIOBase):
    """Reads a reply so that what the network fails with (no route, say) does not look like the disk's fault."""

    def __init__(self, reply: IO[bytes], length: int | None) -> None:
        self._reply = reply
        self._progress = Progress(length)

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, none at the end. Raises what is in `_BROKEN`."""
        try:
            content = self._reply.read(size)
        except _BROKEN:
            raise
        except OSError as error:
            raise urllib.error.URLError(error) from error
        self._progress.add(len(content), "still fetching the bundle")
        return content


def _root(partial: Path, url: str) -> Path:
    """The bundle inside: the tar was made of the folder, or of what is in it."""
    for folder in (partial, *(entry for entry in sorted(partial.iterdir()) if entry.is_dir())):
        if (folder / MANIFEST).is_file():
            return folder
    raise BundleError(f"{_shown(url)} holds no {MANIFEST}; make the tar of the bundle's folder")


def _put(new: Path, folder: Path, sha256: str) -> None:
    """Rename into place; where another worker was faster, its copy is as good."""
    try:
        os.rename(new, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not is_bundle(folder, sha256):  # damaged
            _remove(folder)
            os.rename(new, folder)


def _partials(folder: Path) -> list[Path]:
    """What is not whole, of this bundle and of others that are kept beside it."""
    return [folder.with_name(name) for name in os.listdir(folder.parent) if _PARTIAL.match(name)]


def _remove_abandoned(folder: Path, is_held: bool) -> None:
    """What workers that were killed while they fetched have left; `is_held`: the lock on `folder`."""
    for entry in _partials(folder):
        if is_abandoned(entry, is_held and entry.name.startswith(f".{folder.name}.")):
            shutil.rmtree(entry, ignore_errors=True)


def _turn(folder: Path, wait_s: float) -> AbstractContextManager[bool]:
    """Hold the lock on `folder` for a block. Raises BundleError when another worker holds it for too long."""
    path = folder.with_name(f".{folder.name}.lock")
    late = BundleError(f"another worker has held {path} for {_TURN_S:g} s; remove it")
    waits = "another worker is fetching the bundle; waiting for it"
    return turn(path, time.monotonic() + wait_s, lambda: log("INFO", waits), late)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _shown(url: str) -> str:
    """Without the query: that of a signed address is a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"[:200]
