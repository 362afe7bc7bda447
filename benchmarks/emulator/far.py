"""An emulated endpoint at a distance: TLS in front of it, and half a round trip between a worker and every byte.

The time of flight is added by a relay: to what it passes on either way, and a whole round trip before the first of it,
for TCP's own handshake. Bandwidth and loss are not emulated.
"""

from __future__ import annotations

import asyncio
import datetime
import ssl
import tempfile
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from .thread import EmulatorThread

_HOST = "localhost"
_READ_BYTES = 65536

Pass = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class FarEmulatorThread(EmulatorThread):
    """An EmulatorThread whose workers are `rtt_s` seconds of round trip away. Its clients are not."""

    def __init__(self, rtt_s: float, **settings: Any) -> None:
        super().__init__(**settings)
        self._rtt_s = rtt_s

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._folder = tempfile.TemporaryDirectory()
            self._way = TlsFront(Path(self._folder.name), urlsplit(self.url).port or 0, self._rtt_s).__enter__()
        except BaseException:
            super().__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._way.__exit__(kind, error, traceback)
        self._folder.cleanup()
        super().__exit__(kind, error, traceback)

    def worker_env(self, worker_id: str = "worker-1", *, ping_interval_ms: int = 4000) -> dict[str, str]:
        """See Emulator.worker_env; also who is to be trusted."""
        env = super().worker_env(worker_id, ping_interval_ms=ping_interval_ms)
        # What is measured beside this worker pings through requests, which has a variable of its own.
        trusted = {"SSL_CERT_FILE": str(self._way.pem), "REQUESTS_CA_BUNDLE": str(self._way.pem)}
        return {name: value.replace(self.url.rstrip("/"), self._way.url) for name, value in env.items()} | trusted


class TlsFront:
    """TLS at `url` for the server at `backend`, a port here, and a relay before it where that is to be far away.

    A context manager, in a thread with an event loop of its own. `pem`, in `folder`, is its certificate, which is its
    own authority.
    """

    def __init__(self, folder: Path, backend: int, rtt_s: float = 0.0) -> None:
        self.pem = self_signed(folder, _HOST)
        self._backend, self._rtt_s = backend, rtt_s
        self._open: set[asyncio.Task[None]] = set()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="distance", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pem)
        async with AsyncExitStack() as servers:
            port = await self._relay(servers, self._backend, 0.0, context)
            if self._rtt_s:
                port = await self._relay(servers, port, self._rtt_s)
            self.url = f"https://{_HOST}:{port}"
            self._listening.set()
            await self._stop.wait()
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)

    async def _relay(
        self, servers: AsyncExitStack, to: int, rtt_s: float, context: ssl.SSLContext | None = None
    ) -> int:
        """Its port."""
        server = await asyncio.start_server(self._passing(to, rtt_s), "127.0.0.1", 0, ssl=context)
        await servers.enter_async_context(server)
        return int(server.sockets[0].getsockname()[1])

    def _passing(self, port: int, rtt_s: float) -> Pass:
        async def both_ways(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._open.add(task)
            back = None
            try:
                await asyncio.sleep(rtt_s)
                there, back = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(_pump(reader, back, rtt_s / 2), _pump(there, writer, rtt_s / 2))
            except (OSError, asyncio.CancelledError):
                pass  # the end of a connection, and of the way
            finally:
                self._open.discard(task)
                for one in (writer, back):
                    if one is not None:
                        one.transport.abort()

        return both_ways


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Pass on what is read, `delay_s` seconds later and in its order, and the end of it."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while data := await reader.read(_READ_BYTES):
            loop.call_later(delay_s, writer.write, data)
    await asyncio.sleep(delay_s)
    writer.close()


def self_signed(folder: Path, host: str) -> Path:
    """A certificate for `host` and its key, in one PEM file that is its own authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / f"{host}.pem"
    path.write_bytes(private + made.public_bytes(encoding))
    return path
