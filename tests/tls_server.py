"""A local HTTPS server with a certificate authority of its own, for tests of fetching."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.emulator.far import self_signed
from engine.fetching.fetch import Network

HOST = "media.test"
LOOPBACK = "127.0.0.1"
Answer = Callable[[BaseHTTPRequestHandler], None]


def certificate(folder: Path, host: str = HOST) -> Path:
    """A self-signed certificate for `host` and its key, in one PEM file that is its own authority."""
    return self_signed(folder, host)


def searchable(folder: Path, pem: Path) -> Path:
    """`folder` with the authority in `pem`, whose subject is a common name alone, as `openssl rehash` files it.

    The file's name is the hash of the subject in canonical form: X509_NAME_hash, and x509_name_canon in OpenSSL's
    crypto/x509/x_name.c.
    """
    name = pem.stem.encode()
    text = bytes([0x0C, len(name)]) + name
    attribute = b"\x06\x03\x55\x04\x03" + text
    canonical = bytes([0x31, len(attribute) + 2, 0x30, len(attribute)]) + attribute
    number = int.from_bytes(hashlib.sha1(canonical, usedforsecurity=False).digest()[:4], "little")
    folder.mkdir(exist_ok=True)
    (folder / f"{number:08x}.0").write_bytes(pem.read_bytes())
    return folder


class TlsServer:
    """Answers paths as `answers` says; `seen` lists (method, path, headers, body) of every request."""

    def __init__(self, pem: Path) -> None:
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.pem = pem
        self._server = ThreadingHTTPServer((LOOPBACK, 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]  # a client that left
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def host(self) -> str:
        """As a list of hosts names it."""
        return f"{HOST}:{self.port}"

    def url(self, path: str = "/") -> str:
        return f"https://{self.host}{path}"

    def network(self, *answers: Sequence[str], allowed: Sequence[str] = (LOOPBACK,)) -> Network:
        """A resolver that gives `answers` in turn, the last one for ever; only `allowed` addresses may be reached."""
        turns = list(answers) or [[LOOPBACK]]
        context = ssl.create_default_context(cafile=str(self.pem))

        def resolve(host: str, port: int) -> Sequence[str]:
            return turns.pop(0) if len(turns) > 1 else turns[0]

        return Network(resolve, lambda address: address in allowed, lambda: context)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.seen.append((self.command, self.path, headers, body))
                self.close_connection = True
                server.answers.get(self.path.partition("?")[0], content(b"", status=404))(self)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


def content(body: bytes, status: int = 200, **headers: str) -> Answer:
    """Answer with `body`; underscores in names of headers become dashes."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def raw(reply: bytes) -> Answer:
    """Answer with exactly these bytes and close."""
    return lambda request: _write(request, reply)


def _write(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.wfile.write(data)


def endless(first: bytes, piece: bytes, pause_s: float) -> Answer:
    """Write `first` as the raw reply, then `piece` again and again until the client leaves."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(first)
        try:
            while True:
                request.wfile.write(piece)
                time.sleep(pause_s)
        except OSError:
            pass

    return answer


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections and never says a word."""
    with socket.create_server((LOOPBACK, 0)) as server:
        yield server.getsockname()[1]
