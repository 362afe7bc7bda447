"""Our HTTP client against servers that follow a script: what they send, when, and what becomes of the connection."""

import asyncio
import gzip
import socket
import ssl
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohappyeyeballs
import psutil
import pytest

from handler.protocol import connections, names, trust
from handler.protocol.connections import Client
from handler.protocol.http1 import Connection, Interrupted, Reply
from tests.scripted_server import Server, replies, serving
from tests.tls_server import certificate

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LARGE = b"x" * 20_000_000


def sockets() -> set[tuple[Any, ...]]:
    """Of this process, by their ends."""
    return {(one.laddr, one.raddr) for one in psutil.Process().net_connections("tcp")}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """With a key. No socket may be left when it is closed, but for those that other tests have left."""
    before = sockets()
    made = Client({"Authorization": "secret", "User-Agent": "us"})
    yield made
    made.close()
    for _ in range(100):
        if not (left := sockets() - before):
            return
        await asyncio.sleep(0.005)
    raise AssertionError(left)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Of a server that is trusted."""
    pem = certificate(tmp_path, "localhost")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pem)
    monkeypatch.setattr(trust, "context", lambda: ssl.create_default_context(cafile=str(pem)))
    return made


def chunked(*parts: bytes, trailers: bytes = b"", headers: bytes = b"", size: str = "%x\r\n") -> bytes:
    body = b"".join((size % len(part)).encode() + part + b"\r\n" for part in parts)
    return (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + headers + b"\r\n" + body + b"0\r\n" + trailers + b"\r\n"
    )


def encoded(how: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s" % (how, len(body), body)


def raw_deflate(body: bytes) -> bytes:
    return zlib.compress(body, wbits=-zlib.MAX_WBITS)


WHOLE = {
    "length": (OK, 200, b"ok", True),
    "chunks": (chunked(b"o", b"k"), 200, b"ok", True),
    "trailers": (chunked(b"ok", trailers=b"Content-Encoding: gzip\r\nX: y\r\n"), 200, b"ok", True),
    "chunk lengths with spaces": (chunked(b"ok", size="%x \r\n"), 200, b"ok", True),
    "to the end of the connection": (b"HTTP/1.1 200 OK\r\nX: #end\r\n\r\nok", 200, b"ok", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nX: #end\r\n\r\nok", 200, b"ok", False),
    "HTTP/1.0 that stays": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True
    ),
    "HTTP/1.0 that leaves": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
    "close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
    "100": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok", True),
    "103": (b"HTTP/1.1 103 Early Hints\r\nContent-Encoding: gzip\r\n\r\n" + OK, 200, b"ok", True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "204 with a length": (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 204, b"", True),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b"", True),
    "500": (b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nok", 500, b"ok", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
    "gzip": (encoded(b"gzip", gzip.compress(b"ok")), 200, b"ok", True),
    "gzip of two members": (encoded(b"GZIP", gzip.compress(b"o") + gzip.compress(b"k")), 200, b"ok", True),
    "deflate": (encoded(b"deflate", zlib.compress(b"ok")), 200, b"ok", True),
    "deflate without its header": (encoded(b"deflate", raw_deflate(b"ok")), 200, b"ok", True),
    "gzip of nothing": (encoded(b"gzip", b""), 200, b"", True),
    "another encoding": (encoded(b"br", b"ok"), 200, b"ok", True),
    "gzip in chunks": (chunked(gzip.compress(b"ok"), headers=b"Content-Encoding: gzip\r\n"), 200, b"ok", True),
    "a header twice": (b"HTTP/1.1 200 OK\r\nX: 1\r\nX: 2\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
    "a header without a value": (b"HTTP/1.1 200 OK\r\nX:\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
    "a huge header": (
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000 + b"\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True
    ),
    "odd bytes in a header": (b"HTTP/1.1 200 OK\r\nX: \x01\xff\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
    "lines without CR": (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 200, b"ok", True),
    "an offer to upgrade": (
        b"HTTP/1.1 200 OK\r\nUpgrade: h2\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True
    ),
    "more than its length": (OK + b"ay", 200, b"ok", False),
    "two replies": (OK + OK, 200, b"ok", False),
    "a line after it": (OK + b"\r\n", 200, b"ok", True),
}  # fmt: skip


@pytest.mark.parametrize("pieces", [1 << 30, 1], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", WHOLE)
async def test_a_whole_reply(client: Client, name: str, pieces: int):
    reply, status, body, stays = WHOLE[name]
    if len(reply) > 10_000 and pieces == 1:
        pieces = 10_000
    async with serving(replies(reply, OK, pieces=pieces)) as server:
        found = await client.get(server.url)
        assert (found.status, found.body) == (status, body)
        if pieces == 1:
            await asyncio.sleep(0.01)  # what comes behind it comes later
        assert (await client.get(server.url)).body == b"ok"
        assert server.of == ([0, 0] if stays else [0, 1]) or name == "a line after it"
        client.close()


def test_what_the_sdk_reads_of_a_reply():
    reply = Reply(200, "OK", {"content-type": "Application/JSON; charset=x"}, b'{"a": 1}')
    assert (reply.content_type, reply.content_length, reply.was_read) == ("application/json", 8, False)
    assert asyncio.run(reply.json()) == {"a": 1}
    assert reply.was_read
    assert Reply(200, "", {}, b"").content_type == "application/octet-stream"
    reply.raise_for_status()
    with pytest.raises(Exception, match=r"^status 404 Not Found$"):
        Reply(404, "Not Found", {}, b"").raise_for_status()


BROKEN = {
    "nothing": (b"#end"[:0], None),
    "garbage": (b"<html>#end", None),
    "half its headers": (b"HTTP/1.1 200 OK\r\nX: #end", None),
    "an interim reply alone": (b"HTTP/1.1 100 Continue\r\nX: #end\r\n\r\n", None),
    "an upgrade": (b"HTTP/1.1 101 Switch\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n#end", None),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok#end", None),
    "HTTP/2": (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00#end", None),
    "less than its length": (b"HTTP/1.1 202 OK\r\nX: #end\r\nContent-Length: 5\r\n\r\nok", 202),
    "half its chunks": (b"HTTP/1.1 202 OK\r\nX: #end\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", 202),
    "a chunk of no length": (b"HTTP/1.1 202 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n#end", 202),
    "no gzip": (encoded(b"gzip", b"ok"), 200),
    "half of gzip": (encoded(b"gzip", gzip.compress(b"ok" * 99)[:-9]), 200),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_reply(client: Client, name: str):
    """To a GET it is none; to a POST its status is, where that was whole: the server has it, whatever went wrong."""
    reply, status = BROKEN[name]
    async with serving(replies(reply or None)) as server:
        with pytest.raises(Interrupted):
            await client.get(server.url)
        if status is None:
            with pytest.raises(Interrupted):
                await client.post(server.url, b"1")
        else:
            assert await client.post(server.url, b"1") == status
        assert server.of == [0, 1]


async def test_a_reset_ends_no_reply(client: Client):
    """A reply without a length ends with its connection, but not with one that breaks."""

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, 0)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhal")
        await asyncio.sleep(0.01)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with serving(script) as server:
        with pytest.raises(Interrupted, match="reset"):
            await client.get(server.url)


# Connections that are kept


async def test_a_get_is_sent_again_where_its_kept_connection_ends_under_it(client: Client):
    async with serving(replies(OK, None, OK)) as server, serving(replies(None, OK)) as other:
        await client.get(server.url)
        await client.open_ahead(other.url)
        await client.open_ahead(other.url)
        assert (await client.get(server.url)).body == b"ok"
        assert (await client.get(other.url)).body == b"ok"
        assert (server.of, other.of, other.accepted) == ([0, 0, 1], [0, 1], 2)
        client.close()


@pytest.mark.parametrize("begun", [b"HTTP/1.1 200 OK\r\n#end", b"HTTP/1.1 100 Continue\r\nX: #end\r\n\r\n"])
async def test_one_whose_reply_had_begun_is_not_nor_a_post_nor_on_a_fresh_connection(client: Client, begun: bytes):
    async with serving(replies(OK, begun, OK, None, None)) as server:
        await client.get(server.url)
        with pytest.raises(Interrupted):
            await client.get(server.url)
        await client.get(server.url)
        with pytest.raises(Interrupted):
            await client.post(server.url, b"1")
        with pytest.raises(Interrupted):
            await client.get(server.url)
        assert server.of == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("words", [b"HTTP/1.1 408 Too late\r\nContent-Length: 0\r\n\r\n", b"x", b"\r\n"])
async def test_a_connection_on_which_something_came_unasked_is_not_used(client: Client, words: bytes):
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = server.accepted - 1
        await server.request(reader, number)
        writer.write(OK)
        await asyncio.sleep(0.01)
        writer.write(words)
        await reader.read()

    async with serving(script) as server:
        for _ in range(2):  # not with a GET, which would be sent again
            assert await client.post(server.url, b"1") == 200
            await asyncio.sleep(0.03)
        assert server.of == [0, 1]
        client.close()


async def test_what_a_burst_leaves_is_ended_in_time_and_what_is_used_is_not(
    client: Client, monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(connections, "_KEPT_S", 0.05)

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = server.accepted - 1
        while True:
            await server.request(reader, number)
            while server.accepted < 8:
                await asyncio.sleep(0.001)
            writer.write(EMPTY)

    async with serving(script) as server:
        assert await asyncio.gather(*(client.post(server.url, b"1") for _ in range(8))) == [200] * 8
        while server.open > 1:
            await client.post(server.url, b"1")
            now[0] += 0.02
            await asyncio.sleep(0.005)
        await client.post(server.url, b"1")
        assert (server.accepted, server.open) == (8, 1)
        now[0] += 1.0
        await server.all_gone()
        assert await client.post(server.url, b"1") == 200
        client.close()


async def test_one_that_is_kept_holds_no_body_and_ends_at_once(client: Client, tls: ssl.SSLContext):
    """Over TLS too, where the other end may never say that it has heard."""

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, 0)
        writer.write(OK)
        cast("asyncio.Transport", writer.transport).pause_reading()
        await ended.wait()

    used: list[Connection] = []
    ended = asyncio.Event()
    async with serving(script, tls=tls) as server:
        await client.get(server.url, used.append)
        assert used[0]._body == []
        transport = used[0].transport
        assert transport is not None
        found = transport.get_extra_info("socket")
        client.close()
        for _ in range(10):
            await asyncio.sleep(0)
        assert found.fileno() == -1
        ended.set()


async def test_one_that_was_idle_for_too_long_is_not_used(client: Client, monkeypatch: pytest.MonkeyPatch):
    """Also where a machine slept through the time at which it would have been ended."""
    async with serving(replies(OK)) as server:
        await client.get(server.url)
        monkeypatch.setattr(connections, "_KEPT_S", 0.0)
        await client.get(server.url)
        assert server.of == [0, 1]
        client.close()


async def test_nothing_is_asked_over_a_connection_that_came_too_late(client: Client, monkeypatch: pytest.MonkeyPatch):
    """Whoever left would not wait for the reply, in which there may be a job."""
    connect = aiohappyeyeballs.start_connection

    async def connect_and_leave(*args: Any, **options: Any) -> socket.socket:
        found = await connect(*args, **options)
        client.leaving = True
        return found

    async with serving(replies(OK)) as server:
        await client.open_ahead(server.url)
        client.leaving = True
        with pytest.raises(Interrupted, match="leaving"):  # nor over one that is kept
            await client.get(server.url)
        client.leaving = False
        monkeypatch.setattr(connections, "start_connection", connect_and_leave)
        with pytest.raises(Interrupted, match="leaving"):
            await asyncio.gather(client.get(server.url), client.get(server.url))
        client.close()
        await server.all_gone()
        assert len(server.heads) <= 1


async def test_a_client_that_is_closed_ends_what_is_under_way_when_it_is_through(client: Client):
    closed = asyncio.Event()

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, 0)
        await closed.wait()
        writer.write(OK)
        await reader.read()

    async with serving(script) as server:
        asking = asyncio.create_task(client.get(server.url))
        while not server.heads:
            await asyncio.sleep(0)
        await client.open_ahead(server.url)
        client.close()
        closed.set()
        assert (await asking).body == b"ok"
        await server.all_gone()
        with pytest.raises(Interrupted, match="leaving"):
            await client.get(server.url)
        await client.open_ahead(server.url)
        assert server.accepted == 2


# Giving up


async def test_no_reply_goes_to_another_request_wherever_one_was_given_up(client: Client):
    """Cancelled after each number of turns of the event loop; the number in a path comes back in its reply."""

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await server.request(reader, 0)
            path = server.heads[-1].split()[1]
            for part in (b"HTTP/1.1 200 OK\r\n", b"Content-Length: %d\r\n\r\n" % len(path), path):
                writer.write(part)
                await asyncio.sleep(0)

    async with serving(script) as server:
        given_up = 0
        for turns in range(60):
            url = f"{server.url}/no"
            asking = asyncio.ensure_future(client.get(url) if turns % 2 else client.post(url, LARGE[:2_000_000]))
            for _ in range(turns // 2):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait({asking})
            given_up += asking.cancelled()
            assert (await client.get(f"{server.url}/{turns}")).body == b"/%d" % turns
        assert given_up > 10
        client.close()


async def test_a_reply_that_is_here_when_its_request_is_given_up_leaves_no_connection_open(
    client: Client, monkeypatch: pytest.MonkeyPatch
):
    settle = Connection._settle

    def settle_and_cancel(connection: Connection) -> None:
        settle(connection)
        asking.cancel()

    monkeypatch.setattr(Connection, "_settle", settle_and_cancel)
    async with serving(replies(OK)) as server:
        asking = asyncio.create_task(client.get(server.url))
        await asyncio.wait({asking})
        assert asking.cancelled()
        await server.all_gone()


async def test_a_request_ends_with_its_connection(client: Client):
    async with serving(lambda server, reader, writer: reader.read()) as server:
        used: list[Connection] = []
        asking = asyncio.create_task(client.get(server.url, used.append))
        while not used:
            await asyncio.sleep(0)
        assert used[0].is_asking
        used[0].close()
        with pytest.raises(Interrupted, match="ended from here"):
            await asking
        assert not used[0].is_asking
        assert not used[0].is_open
        with pytest.raises(Interrupted):
            await used[0].ask(b"GET / HTTP/1.1\r\n\r\n")


async def test_the_rest_of_a_reply_may_take_only_so_long(client: Client):
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, server.accepted - 1)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.write(b"HTTP/1.1 201 OK\r\nContent-Length: 3\r\n\r\nok")
        if server.accepted > 1:
            await asyncio.sleep(0.01)
            writer.write(b"!")
        await reader.read()

    async with serving(script) as server:
        begin = asyncio.get_running_loop().time()
        assert await client.post(server.url, b"1", rest_s=0.05) == 201
        assert asyncio.get_running_loop().time() - begin >= 0.14
        assert await client.post(server.url, b"1", rest_s=0.5) == 201
        await asyncio.sleep(0.55)
        assert server.open == 1  # its own time was not counted when it was through
        client.close()


# Large bodies


@pytest.mark.parametrize("over_tls", [False, True])
async def test_a_large_body_arrives_and_is_not_copied(
    client: Client, tls: ssl.SSLContext, over_tls: bool, monkeypatch: pytest.MonkeyPatch
):
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, 0, with_body=False)
        left = len(LARGE)
        while left:
            await asyncio.sleep(0.0005)  # the client has to wait for it
            left -= len(await reader.read(1 << 20))
            transport = made[0].transport
            assert transport is not None
            waiting.append(transport.get_write_buffer_size())
        writer.write(EMPTY)
        await server.request(reader, 0)
        writer.write(EMPTY)
        await reader.read()

    made: list[Connection] = []
    waiting: list[int] = []

    def connection() -> Connection:
        made.append(Connection())
        return made[-1]

    monkeypatch.setattr(connections, "Connection", connection)
    async with serving(script, tls=tls if over_tls else None) as server:
        tracemalloc.start()
        try:
            assert await client.post(server.url, LARGE) == 200
            assert tracemalloc.get_traced_memory()[1] < 8_000_000  # of which the server holds up to 2 MB
        finally:
            tracemalloc.stop()
        assert max(waiting) < 1_500_000
        assert await client.post(server.url, b"1") == 200
        assert server.of == [0, 0]
        client.close()


@pytest.mark.parametrize("over_tls", [False, True])
async def test_a_connection_that_ends_amid_a_large_body_is_told_as_such(
    client: Client, tls: ssl.SSLContext, over_tls: bool
):
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3_000_000)
        writer.transport.abort()

    async with serving(script, tls=tls if over_tls else None) as server:
        with pytest.raises(Interrupted, match="the server has ended the connection") as error:
            await client.post(server.url, LARGE)
        assert error.value.status is None


@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("size", [20_000, 200_000, 20_000_000])
async def test_a_connection_whose_request_was_answered_before_it_was_sent_is_not_used_again(
    client: Client, tls: ssl.SSLContext, over_tls: bool, size: int, monkeypatch: pytest.MonkeyPatch
):
    """The server says no and reads no further; a second request would wait behind the first one's body."""

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await server.request(reader, server.accepted - 1, with_body=server.accepted > 1)
        if server.accepted == 1:
            cast("asyncio.Transport", writer.transport).pause_reading()
            await asyncio.sleep(0.02)
            writer.write(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
            await asyncio.sleep(0.1)
            waited.append(True)
        else:
            writer.write(EMPTY)

    waited: list[bool] = []

    def made(address: Any) -> socket.socket:  # else the kernels take megabytes at once
        found = socket.socket(*address[:2])
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return found

    monkeypatch.setattr(connections, "_socket", made)
    async with serving(script, tls=tls if over_tls else None) as server:
        assert await client.post(server.url, LARGE[:size]) == 413
        assert not waited  # for the server to end it
        assert await client.post(server.url, b"1") == 200
        assert server.of == [0, 1]


# Ending only our half


async def test_a_reply_arrives_after_the_end_of_the_request_was_told(client: Client):
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, 0)
        assert await reader.read() == b""
        writer.write(OK)

    used: list[Connection] = []
    async with serving(script) as server:
        asking = asyncio.create_task(client.get(server.url, used.append))
        while not server.heads:
            await asyncio.sleep(0)
        client.leaving = True
        assert used[0].end_sending()
        assert (await asking).body == b"ok"
        assert not used[0].is_open
        assert not used[0].end_sending()
        client.leaving = False


async def test_over_tls_it_cannot_be_told(client: Client, tls: ssl.SSLContext):
    used: list[Connection] = []
    async with serving(replies(OK, OK, None, OK), tls=tls) as server:
        await client.get(server.url, used.append)
        assert not used[0].end_sending()
        for _ in range(2):
            assert (await client.get(server.url)).body == b"ok"
        assert server.of == [0, 0, 0, 1]
        client.close()


# Ways


@pytest.mark.parametrize(
    ("status", "location", "seen"),
    [
        (302, "/b?c=d", ["GET /b?c=d own key"]),
        (301, "b", ["GET /a/b own key"]),
        (303, "{own}/b#c", ["GET /b own key"]),
        (307, "//{own_host}/b", ["GET /b own key"]),
        (308, "{other}/b", ["GET /b other"]),
        (302, "/käse", ["GET /k%C3%A4se own key"]),
        (302, "", []),
        (304, "/b", []),
    ],
)
async def test_a_redirect_is_followed_and_no_other_host_gets_the_key(
    client: Client, status: int, location: str, seen: list[str]
):
    async with serving(replies(OK)) as other:
        location = location.replace("{other}", other.url)

        async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            to = location.replace("{own}", server.url).replace("{own_host}", f"127.0.0.1:{server.port}")
            await server.request(reader, 0)
            head = f"HTTP/1.1 {status} Go\r\nLocation: {to}\r\n"
            writer.write(head.encode() + (b"" if status == 304 else b"Content-Length: 0\r\n") + b"\r\n")
            while True:
                await server.request(reader, 0)
                writer.write(OK)

        async with serving(script) as server:
            reply = await client.get(f"{server.url}/a/x")
            assert reply.status == (200 if seen else status)
            assert b"Authorization: secret\r\n" in server.heads[0]
            found = [
                " ".join([*head.decode().split()[:2], who] + ["key"] * (b"secret" in head))
                for who, heads in (("own", server.heads[1:]), ("other", other.heads))
                for head in heads
            ]
            assert found == seen
            client.close()


@pytest.mark.parametrize("to", ["http://[", "ftp://127.0.0.1/", "http://127.0.0.1:99999/", "/a"])
async def test_a_redirect_to_nowhere_or_in_a_circle_is_no_reply(client: Client, to: str):
    reply = f"HTTP/1.1 307 Go\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()
    async with serving(replies(reply)) as server:
        with pytest.raises(Interrupted, match="redirected"):
            await client.get(server.url)
        with pytest.raises(Interrupted, match="redirected"):
            await client.post(server.url, b"1")
        assert len(server.heads) == (20 if to == "/a" else 2)
        assert set(server.of) == {0}
        client.close()


@pytest.mark.parametrize(("status", "bodies"), [(307, [b"1", b"1"]), (308, [b"1", b"1"]), (302, [b"1"]), (303, [b"1"])])
async def test_a_post_goes_on_as_a_post_or_not_at_all(client: Client, status: int, bodies: list[bytes]):
    reply = f"HTTP/1.1 {status} Go\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n".encode()
    async with serving(replies(reply, OK)) as server:
        posting = client.post(server.url, b"1", "X: y\r\n")
        if len(bodies) == 2:
            assert await posting == 200
        else:
            with pytest.raises(Interrupted, match=r"redirected to 127\.0\.0\.1"):
                await posting
        assert server.bodies == bodies
        assert all(head.startswith(b"POST /") and b"X: y\r\n" in head for head in server.heads)
        client.close()


async def test_a_redirect_that_breaks_off_is_no_reply_to_a_post(client: Client):
    async with serving(replies(b"HTTP/1.1 307 Go\r\nContent-Length: 9\r\nX: #end\r\n\r\n")) as server:
        with pytest.raises(Interrupted):
            await client.post(server.url, b"1")


@pytest.mark.parametrize(
    ("url", "origin", "target"),
    [
        ("http://h/a?b=c", (False, "h", 80), "/a?b=c"),
        ("https://h/a", (True, "h", 443), "/a"),
        ("https://H:80", (True, "h", 80), "/"),
        ("http://h?a=/b", (False, "h", 80), "/?a=/b"),
        ("http://h#a/b", (False, "h", 80), "/"),
        ("http://h/a#b?c", (False, "h", 80), "/a"),
        ("http://user:word@h:81/", (False, "h", 81), "/"),
        ("http://[::1]:81/a", (False, "::1", 81), "/a"),
        ("http://h/ä b\r\nX:\x00|%2F", (False, "h", 80), "/%C3%A4%20b%0D%0AX:%00%7C%2F"),
        ("https://bücher.de./", (True, "xn--bcher-kva.de.", 443), "/"),
    ],
)
def test_parts_of_an_address(url: str, origin: tuple[bool, str, int], target: str):
    assert connections._parts(url) == (origin, target)


@pytest.mark.parametrize(
    "url", ["", "h/a", "ftp://h/", "http:///a", "http://h:x/", "http://h:99999/", "http://[::1/", f"http://{'ä' * 64}/"]
)
async def test_what_is_no_address(client: Client, url: str):
    with pytest.raises(ValueError):  # noqa: PT011 - Python's own sentences
        await client.get(url)


async def test_what_is_asked(client: Client):
    odd = Client({"Authorization": "a\r\nX: 1", "Y": "\x00ü\x7f"})
    async with serving(replies(OK)) as server:
        await client.get(server.url)
        await odd.post(f"{server.url}/p", b"12", "Z: z\r\n")
        host = f"Host: 127.0.0.1:{server.port}\r\nAccept: */*\r\n"
        assert [head.decode() for head in server.heads] == [
            f"GET / HTTP/1.1\r\n{host}User-Agent: us\r\nAuthorization: secret\r\n\r\n",
            f"POST /p HTTP/1.1\r\n{host}Y:  ü \r\nAuthorization: a X: 1\r\nContent-Length: 2\r\nZ: z\r\n\r\n",
        ]
        client.close()
        odd.close()


def test_a_host_names_its_port_where_it_is_not_the_usual_one():
    client = Client({})
    for url, host in {
        "http://h/": "h",
        "https://h:443/": "h",
        "https://h:80/": "h:80",
        "https://[::1]/": "[::1]",
        "http://[::1]:81/": "[::1]:81",
    }.items():
        origin, target = connections._parts(url)
        assert f"\r\nHost: {host}\r\n".encode() in client._head(f"GET {target}", origin, origin)


async def test_ipv6(client: Client):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with serving(replies(OK), host="::1") as server:
        assert (await client.get(server.url)).body == b"ok"
        client.close()


@asynccontextmanager
async def black_hole(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    """The port of a server that takes no connection: its queue is full, and what knocks gets no answer."""
    with socket.create_server((host, port), backlog=0) as full:
        address = full.getsockname()
        knocking = [socket.socket() for _ in range(3)]
        for one in knocking:
            one.setblocking(False)
            one.connect_ex(address)
        await asyncio.sleep(0.01)
        try:
            yield address[1]
        finally:
            for one in knocking:
                one.close()


async def test_of_two_addresses_the_first_may_be_dead(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "_OTHER_ADDRESS_S", 0.05)

    async def two(host: str, port: int) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.1", "127.0.0.2")]

    async with serving(replies(OK), host="127.0.0.2") as server, black_hole(port=server.port):
        monkeypatch.setattr(names, "addresses", two)
        async with asyncio.timeout(1):
            assert (await client.get(f"http://name:{server.port}/")).body == b"ok"
        client.close()


@pytest.mark.parametrize("where", ["connect", "handshake"])
async def test_a_connection_that_does_not_come_about_ends(
    client: Client, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, where: str
):
    monkeypatch.setattr(connections, "_CONNECT_S", 0.05)
    async with black_hole() as port, serving(lambda server, reader, writer: reader.read()) as silent:
        with pytest.raises(TimeoutError):
            await client.get(f"https://localhost:{port if where == 'connect' else silent.port}/")
        await silent.all_gone()


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["not TLS", "nothing"])
async def test_a_server_that_does_not_speak_tls(client: Client, tls: ssl.SSLContext, words: bytes):
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(words)

    async with serving(script) as server:
        with pytest.raises(OSError):  # noqa: PT011 - ssl.SSLError, or a reset
            await client.get(f"https://localhost:{server.port}/")
