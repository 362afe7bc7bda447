"""HTTPS to hosts on a list, at addresses that were checked. Imported when the first URL comes, not before.

What a caller's URL may not do is reach the network that the worker stands in. So the resolver's answer is checked, all
of it, and the connection goes to a checked address: the name is not looked up a second time, when the answer may be
another one. TLS is verified against the name. A redirect is a new URL and is checked like the first. One deadline
covers everything from the look-up to the last byte.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import string
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from engine.config import Limits
from engine.daemon import in_daemon
from engine.errors import BadHost, InvalidInput, Unreachable
from engine.fetching.addresses import is_public
from engine.fetching.authorities import client_context

_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TEMPORARY = frozenset({408, 425, 429})
_PATH_SAFE = "!#$%&'()*+,/:;=?@[]~"  # the rest of a path or query is percent-encoded
_PLAIN = frozenset({"", "identity", "aws-chunked"})
"""Content encodings that change nothing; the last is of an upload, and some object stores keep its name."""
_HTTPS_PORT = 443
_HOST = re.compile(r"[a-z0-9_.-]+|[0-9a-f:.]+")  # a name, or an address of either kind


@dataclass(frozen=True)
class Reply:
    """What a server answered; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Target:
    """A URL that passed the checks which need no network."""

    host: str
    port: int
    path: str


def resolve(host: str, port: int) -> list[str]:
    """The addresses of `host` as the system's resolver gives them. Raises OSError or UnicodeError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [str(address[0]) for *_, address in found]


@dataclass(frozen=True)
class Network:
    """How names become addresses, which of them may be reached, and whom TLS trusts. Tests bring their own."""

    resolve: Callable[[str, int], Sequence[str]] = resolve
    is_allowed: Callable[[str], bool] = is_public
    trust: Callable[[], ssl.SSLContext] = client_context


INTERNET = Network()


def fetch(url: str, limits: Limits, network: Network | None = None) -> bytes:
    """The content at `url`.

    Raises InvalidInput when the URL, an address, a redirect or the size is not allowed or there is no such content, and
    Unreachable when trying again may help. Blocks for up to `limits.fetch_timeout_s` seconds: for a thread, not for an
    event loop.
    """
    deadline = Deadline(limits.fetch_timeout_s)
    for _ in range(_MAX_REDIRECTS + 1):
        reply = request("GET", url, limits, deadline, network=network)
        if reply.status == http.HTTPStatus.OK:
            return reply.body
        host = urlsplit(url).hostname
        if reply.status not in _REDIRECTS or "location" not in reply.headers:
            kind = Unreachable if reply.status >= 500 or reply.status in _TEMPORARY else InvalidInput
            raise kind(f"{host} answered with status {reply.status}")
        try:
            url = urljoin(url, _as_url(reply.headers["location"]))
        except ValueError:
            raise InvalidInput(f"{host} redirects to a URL that is malformed") from None
    raise InvalidInput(f"more than {_MAX_REDIRECTS} redirects, the last one to {str(urlsplit(url).hostname)[:80]}")


def request(
    method: str,
    url: str,
    limits: Limits,
    deadline: Deadline,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    network: Network | None = None,
) -> Reply:
    """One request and its reply, whatever the status; the body of a redirect is not read.

    Raises as `fetch` does: BadHost for what holds for every URL of the host.
    """
    network = network or INTERNET
    target = check_url(url, limits.fetch_hosts)
    try:
        addresses = _addresses(target, deadline, network)
        connection = _connect(target, addresses, deadline, network)
        try:
            sent = {"Accept-Encoding": "identity", "User-Agent": "worker-tensorrt", **(headers or {})}
            connection.request(method, target.path, body, sent)
            with connection.getresponse() as response:
                return _read(response, target.host, limits.max_media_bytes)
        finally:
            connection.close()
    except TimeoutError:
        raise Unreachable(f"{target.host} did not answer within {deadline.seconds:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise BadHost(f"the certificate of {target.host} cannot be verified: {error.verify_message}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # http.client reads a negative size of a chunk
        raise Unreachable(f"the connection to {target.host} failed ({type(error).__name__})") from error


def check_url(url: str, hosts: Sequence[str]) -> Target:
    """The parts of an https URL whose host is on the list `hosts`. Raises InvalidInput."""
    if not hosts:
        raise InvalidInput("this worker does not fetch URLs (its FETCH_HOSTS is empty); send the content as base64")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port or _HTTPS_PORT
    except ValueError:
        raise InvalidInput("the URL is malformed") from None
    if parts.scheme != "https":
        raise InvalidInput(f"only https URLs are fetched, got {parts.scheme[:20] or 'none'}")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("a URL with a user name or password is not fetched")
    if not _HOST.fullmatch(host):
        raise InvalidInput("the URL needs a host name in ASCII; write an international one in its xn-- form")
    if not any(_matches(host, port, pattern) for pattern in hosts):
        name = host if port == _HTTPS_PORT else f"{host}:{port}"
        raise InvalidInput(f"{name[:80]} is not among the hosts that this worker fetches from (FETCH_HOSTS)")
    try:
        path = quote(parts.path or "/", safe=_PATH_SAFE)
        return Target(host, port, f"{path}?{quote(parts.query, safe=_PATH_SAFE)}" if parts.query else path)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can carry
        raise InvalidInput("the URL is malformed") from None


def _as_url(location: str) -> str:
    """A header's value with its bytes beyond ASCII percent-encoded: UTF-8 as a rule, read as Latin-1 by http.client."""
    return quote(location, safe=string.punctuation, encoding="iso-8859-1")


def _matches(host: str, port: int, pattern: str) -> bool:
    """`pattern` is a host, `*.` and a domain for all hosts below it, or `*`; `:PORT` behind it, else 443."""
    name, _, at = pattern.partition(":")
    if port != int(at or _HTTPS_PORT):
        return False
    return name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:]))


class Deadline:
    """A point in time `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then. Raises TimeoutError when it has passed."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def _addresses(target: Target, deadline: Deadline, network: Network) -> Sequence[str]:
    """All addresses of the host, or an error when one of them may not be reached."""
    found = in_daemon(partial(network.resolve, target.host, target.port), "resolve")
    try:
        addresses = found.result(deadline.left())
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise Unreachable(f"{target.host} cannot be looked up now") from None
        raise BadHost(f"there is no host {target.host[:80]}") from None
    except UnicodeError:
        raise BadHost(f"{target.host[:80]} is not a host name") from None
    if not addresses or not all(network.is_allowed(address) for address in addresses):
        # Which address it is would tell a stranger about the network in here.
        raise BadHost(f"{target.host} is not at a public address")
    return addresses


def _connect(
    target: Target, addresses: Sequence[str], deadline: Deadline, network: Network
) -> http.client.HTTPSConnection:
    """A connection, TLS verified, to the first of the checked `addresses` that takes one."""
    for number, address in enumerate(addresses):
        try:
            # An equal share of the time for each that is left, so that a dead address does not use up all of it.
            raw = socket.create_connection((address, target.port), deadline.left() / (len(addresses) - number))
            break
        except OSError:
            if number == len(addresses) - 1:
                raise
    try:
        context = network.trust()
        # Without a context it makes one of its own, which nobody uses: 20 ms of every request.
        connection = http.client.HTTPSConnection(target.host, target.port, context=context)
        connection.response_class = _Response
        raw.settimeout(deadline.left())
        connection.sock = _Timed(context.wrap_socket(raw, server_hostname=target.host), deadline)
    except BaseException:
        raw.close()
        raise
    return connection


def _read(response: http.client.HTTPResponse, host: str, max_bytes: int) -> Reply:
    headers = {name.lower(): value for name, value in response.getheaders()}
    if response.status in _REDIRECTS:
        return Reply(response.status, headers, b"")
    if not _PLAIN.issuperset(re.split("[, \t]+", (encoding := headers.get("content-encoding", "")).lower())):
        raise InvalidInput(f"{host} sent compressed content ({encoding[:20]}), asked for was plain")
    if (coding := headers.get("transfer-encoding", "chunked")).lower() not in ("chunked", "identity"):
        # http.client would give it as it came, with the sizes of its chunks.
        raise InvalidInput(f"{host} sent content in the transfer coding {coding[:20]}, asked for was none")
    too_large = InvalidInput(f"the content at {host} is over the limit of {max_bytes} bytes (MAX_MEDIA_BYTES)")
    if response.length is not None and response.length > max_bytes:
        raise too_large
    body = response.read(max_bytes + 1)
    if len(body) > max_bytes:
        raise too_large
    if response.length:
        raise Unreachable(f"{host} closed the connection before the end of the content")
    return Reply(response.status, headers, body)


class _Response(http.client.HTTPResponse):
    """The answer, and not the hints that may come ahead of it; http.client passes over 100 alone."""

    def begin(self) -> None:
        super().begin()
        while self.status == http.HTTPStatus.EARLY_HINTS:
            self.headers = self.msg = None  # type: ignore[assignment]  # as before the first
            super().begin()


class _Timed:
    """What http.client needs of a socket; every call on it ends at the deadline.

    A socket's own timeout begins anew with each call: a server that sends a byte now and then would never end.
    """

    def __init__(self, sock: ssl.SSLSocket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._sock, self._deadline))

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._sock.settimeout(self._deadline.left())
            view = view[self._sock.send(view) :]

    def close(self) -> None:
        self._sock.close()


class _TimedReader(io.RawIOBase):
    def __init__(self, sock: ssl.SSLSocket, deadline: Deadline) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)  # keeps the socket open until this is closed
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._deadline.left())
        return self._file.readinto(buffer)

    def readall(self) -> bytes:
        # Everything up to the end, which is asked for when a chunk is -1 bytes long, and never else.
        raise http.client.HTTPException("a negative size")

    def close(self) -> None:
        self._file.close()
        super().close()
