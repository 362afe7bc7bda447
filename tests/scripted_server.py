"""A server that follows a script, on the event loop of the test that asks it, for tests of what speaks HTTP."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

Script = Callable[["Server", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


@dataclass
class Server:
    """`heads` are those of the requests, in order, and `of` the connection, counted from 0, that each came over."""

    url: str = ""
    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    of: list[int] = field(default_factory=list)
    accepted: int = 0
    open: int = 0

    async def request(self, reader: asyncio.StreamReader, number: int, *, with_body: bool = True) -> int:
        """The length of the body, which is read as well unless it is left to the script."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        self.of.append(number)
        found = re.search(rb"Content-Length: (\d+)", head)
        length = int(found[1]) if found else 0
        if with_body:
            self.bodies.append(await reader.readexactly(length))
        return length

    async def all_gone(self) -> None:
        async with asyncio.timeout(5):
            while self.open:
                await asyncio.sleep(0.002)


@asynccontextmanager
async def serving(
    script: Script, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """A server that does with each connection what `script` says, and then closes it."""
    found = Server()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.accepted += 1
        found.open += 1
        with suppress(OSError, RuntimeError, asyncio.IncompleteReadError):  # RuntimeError: written to what is gone
            await script(found, reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        found.open -= 1

    server = await asyncio.start_server(accept, host, 0, ssl=tls, limit=1 << 20)
    found.port = server.sockets[0].getsockname()[1]
    found.url = (
        f"{'https' if tls else 'http'}://{'localhost' if tls else f'[{host}]' if ':' in host else host}:{found.port}"
    )
    try:
        yield found
    finally:
        server.close()
    await found.all_gone()


def replies(*each: bytes | None, pieces: int = 1 << 30) -> Script:
    """Answers the requests, of all connections together, with `each` in turn; None closes, the last counts for ever."""

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = server.accepted - 1
        while True:
            await server.request(reader, number)
            reply = each[min(len(server.heads), len(each)) - 1]
            if reply is None:
                return
            for begin in range(0, len(reply), pieces):
                writer.write(reply[begin : begin + pieces])
                await asyncio.sleep(0)
            if b"#end" in reply:
                return

    return script
