"""TLS before a server that speaks none, with an authority of its own, for tests of who is trusted."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.tls_server import certificate

HOST = "localhost"


class TlsFront:
    """Passes on to `port` what arrives at `url`; a context manager. `pem` is its certificate, and its own authority."""

    def __init__(self, folder: Path, port: int) -> None:
        self.pem = certificate(folder, HOST)
        self._backend = port
        self._listening = threading.Event()
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pem)
        async with await asyncio.start_server(self._pass_on, "127.0.0.1", 0, ssl=context) as server:
            self.url = f"https://{HOST}:{server.sockets[0].getsockname()[1]}"
            self._listening.set()
            await self._stop.wait()
            tasks = [task for task in self._open.values() if task is not None]
            for writer in self._open:
                writer.transport.abort()  # so that whoever reads from it comes to an end, and leaves nothing open
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._backend)
        self._open[writer] = self._open[back] = asyncio.current_task()
        try:
            await asyncio.gather(_pump(reader, back), _pump(there, writer))
        finally:
            back.close()
            writer.close()
            del self._open[writer], self._open[back]


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


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
