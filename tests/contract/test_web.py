"""The routes of a load-balancing worker, over real connections, before an engine that does as it is told."""

import asyncio
import json
import socket
import tracemalloc
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Self

import pytest
from aiohttp.test_utils import BaseTestServer, TestClient, TestServer

from engine.errors import EngineError
from handler.aggregate import END
from handler.web import bodies as web_bodies
from handler.web import front as web_front
from handler.web import routes as web
from handler.web.routes import Routes
from tests.loops import until

JOB = {"input": {"text": "a"}}
STREAM = {"input": {"text": "a", "stream": True}}


class Scripted:
    """Answers with `bodies` once it is `let_go`; an exception among them is raised."""

    def __init__(self) -> None:
        self.bodies: list[bytes | Exception] = [b'{"output":1}']
        self.let_go = asyncio.Event()
        self.held = 0

    async def handle(self, job: dict[str, Any]) -> bytes:
        self.held += 1
        try:
            await self.let_go.wait()
        finally:
            self.held -= 1
        (body,) = self.bodies
        if isinstance(body, Exception):
            raise body
        return body

    async def stream(self, job: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        for body in self.bodies:
            if isinstance(body, Exception):
                raise body
            yield body
            await self.let_go.wait()


@pytest.fixture
def engine() -> Scripted:
    return Scripted()


@pytest.fixture
def routes(engine: Scripted) -> Routes:
    async def health() -> dict[str, Any]:
        raise EngineError("it has ended")

    made = Routes(engine, health, most=1)
    made.is_ready = True
    return made


@pytest.fixture
async def client(routes: Routes) -> AsyncIterator[TestClient[Any, Any]]:
    server = TestServer(routes.app())
    await server.start_server(auto_decompress=False)  # and with handler_cancellation, as by handler/web/front.py
    async with TestClient(server) as running:
        yield running


async def test_who_comes_when_too_many_wait_is_told_to_retry(
    client: TestClient[Any, Any], routes: Routes, engine: Scripted, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(routes, "_most_open", 2)
    asked = [asyncio.create_task(client.post("/runsync", json=JOB)) for _ in range(2)]
    await until(lambda: routes.open == 2)
    refused = await client.post("/runsync", json=JOB)
    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
    assert (await refused.json())["error"] == "overloaded, please retry: 512 requests wait already"
    assert engine.held == routes.running == 1
    engine.let_go.set()
    assert [(await reply).status for reply in asked] == [200, 200]
    assert routes.idle.is_set()


async def test_who_waits_while_the_worker_stops_is_told_to_retry(
    client: TestClient[Any, Any], routes: Routes, engine: Scripted
):
    asked = [asyncio.create_task(client.post("/runsync", json=JOB)) for _ in range(3)]
    await until(lambda: routes.open == 3)
    routes.stop()
    ping = await client.get("/ping")
    assert (ping.status, ping.headers["Connection"]) == (503, "close")
    for waited in asked[1:]:  # at once: the first one still has the place
        refused = await waited
        assert (refused.status, refused.headers["Connection"]) == (503, "close")
        assert (await refused.json())["error"] == "overloaded, please retry: the worker is shutting down"
    assert (routes.open, routes.idle.is_set()) == (1, False)
    engine.let_go.set()
    reply = await asked[0]
    assert (reply.status, reply.headers["Connection"]) == (200, "close")
    await until(routes.idle.is_set)


@pytest.mark.parametrize("waiting", [0, 1])
async def test_who_would_have_to_wait_behind_the_stop_is_told_to_retry(
    client: TestClient[Any, Any], routes: Routes, engine: Scripted, waiting: int
):
    """Where others waited, their end makes no place either: the one there is is taken."""
    first = asyncio.create_task(client.post("/runsync", json=JOB))
    await until(lambda: engine.held == 1)
    waits = [asyncio.create_task(client.post("/runsync", json=JOB)) for _ in range(waiting)]
    late = await Asking(100, 1).begin(client)
    await until(lambda: routes.open == 2 + waiting)
    routes.stop()
    assert [(await one).status for one in waits] == [503] * waiting
    late.writer.write(late.body[1:])
    assert await late.status() == 503
    assert engine.held == 1
    engine.let_go.set()
    assert (await first).status == 200
    await until(routes.idle.is_set)


@pytest.mark.parametrize(
    ("path", "said"), [("/runsync", b'"status":"FAILED"'), ("/v1/embeddings", b'"type":"invalid_request_error"')]
)
async def test_a_body_that_does_not_come_is_told_so(
    client: TestClient[Any, Any], routes: Routes, monkeypatch: pytest.MonkeyPatch, path: str, said: bytes
):
    monkeypatch.setattr(web_bodies, "READ_TIMEOUT_S", 0.1)
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"POST %s HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\n{" % path.encode())
    reply = await reader.readuntil(b"}")
    writer.close()
    assert b"HTTP/1.1 408" in reply
    assert b"invalid input: the body was not here within 0.1 s" in reply
    assert said in reply
    await until(routes.idle.is_set)


async def test_a_body_that_is_waited_for_no_more_is_told_to_retry(client: TestClient[Any, Any], routes: Routes):
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"POST /runsync HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\n{")
    await until(lambda: routes.open == 1)
    routes.stop()
    await asyncio.sleep(0.05)
    assert routes.open == 1  # it has its time
    routes.give_up()
    reply = await reader.readuntil(b"}")
    writer.close()
    assert b"HTTP/1.1 503" in reply
    assert b"overloaded, please retry: the worker is shutting down" in reply


LONG = 900_000
"""Bytes of a body that does not come whole with its headers."""


class Asking:
    """A client that has sent `sent` of a job of `length` bytes."""

    def __init__(self, length: int, sent: int) -> None:
        self.body = json.dumps(JOB).ljust(length).encode()
        self.sent = sent

    async def begin(self, client: TestClient[Any, Any]) -> Self:
        self._reader, self.writer = await asyncio.open_connection(client.host, client.port)
        head = b"POST /runsync HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % len(self.body)
        self.writer.write(head + self.body[: self.sent])
        return self

    async def status(self) -> int:
        async with asyncio.timeout(20):
            line = await self._reader.readline()
        self.writer.close()
        return int(line.split()[1])


@pytest.mark.parametrize(("length", "sent"), [(100, 1), (LONG, 1), (LONG, LONG - 1)])
async def test_a_body_that_does_not_come_holds_no_place(
    client: TestClient[Any, Any], routes: Routes, engine: Scripted, length: int, sent: int
):
    engine.let_go.set()
    slow = await Asking(length, sent).begin(client)
    await until(lambda: routes.open == 1)
    assert (await client.post("/runsync", json=JOB)).status == 200
    assert (routes.open, routes.running) == (1, 0)
    slow.writer.write(slow.body[sent:])
    assert await slow.status() == 200


async def test_long_bodies_take_turns_in_what_may_be_held(
    client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch, routes: Routes, engine: Scripted
):
    monkeypatch.setattr(web_bodies, "MOST_HELD_MB", 1)
    monkeypatch.setattr(web_bodies, "LONGEST_BODY", LONG)
    bodies = web_bodies.Bodies()
    monkeypatch.setattr(routes, "_bodies", bodies)
    engine.let_go.set()
    slow = await Asking(LONG, LONG - 1).begin(client)
    await until(bodies._room.locked)

    async def chunks() -> AsyncIterator[bytes]:
        yield slow.body

    chunked = asyncio.create_task(client.post("/runsync", data=chunks()))
    await until(lambda: len(bodies._queued) == 1)
    assert (await client.post("/runsync", json=JOB)).status == 200  # a short one waits for none of them
    slow.writer.write(slow.body[-1:])
    assert await slow.status() == 200
    assert (await chunked).status == 200
    assert not bodies._room.locked()


async def test_a_body_that_waits_while_the_worker_stops_is_told_to_retry(
    client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch, routes: Routes
):
    monkeypatch.setattr(routes._bodies, "_room", asyncio.Semaphore(0))
    waits, late = await Asking(LONG, LONG).begin(client), await Asking(LONG, 1).begin(client)
    await until(lambda: len(routes._bodies._queued) == 1 and routes.open == 2)
    routes.stop()
    assert await waits.status() == 503
    late.writer.write(late.body[1:])  # it would have to wait
    assert await late.status() == 503
    await until(routes.idle.is_set)


@pytest.mark.parametrize(
    ("path", "said"), [("/runsync", '"status":"FAILED"'), ("/v1/embeddings", '"type":"invalid_request_error"')]
)
async def test_a_compressed_body_is_refused(client: TestClient[Any, Any], engine: Scripted, path: str, said: str):
    engine.let_go.set()
    for encoding in ("gzip", "DEFLATE", "identity, gzip", "br", "zstd ,utf-8"):
        reply = await client.post(path, data=zlib.compress(b"{}"), headers={"Content-Encoding": encoding})
        assert reply.status == 415
        sentence = f"the body is compressed ({encoding.lower()}); send it as it is, without `Content-Encoding`"
        assert f"invalid input: {sentence}" in await reply.text()
        assert said in await reply.text()
    for encoding in ("identity", "UTF-8", "none", "text", ""):
        assert (await client.post(path, json=JOB, headers={"Content-Encoding": encoding})).status == 200


async def test_a_body_that_is_longer_than_it_may_be_is_not_waited_for(client: TestClient[Any, Any]):
    assert await (await Asking(web_bodies.LONGEST_BODY + 1, 1).begin(client)).status() == 413


def small_buffer(*_: object) -> socket.socket:
    """Of a server; it and what it accepts pass on little."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    made.bind(("127.0.0.1", 0))
    return made


async def unread(server: BaseTestServer, job: dict[str, Any]) -> socket.socket:
    """A connection with small buffers on which the reply to `job` comes, and then its end."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, (server.host, server.port))
    raw = json.dumps(job).encode()
    head = b"POST /runsync HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    await loop.sock_sendall(client, head % len(raw) + raw)
    return client


@pytest.mark.parametrize("job", [STREAM, JOB], ids=["stream", "job"])
async def test_a_reply_that_nobody_reads_holds_no_place(
    monkeypatch: pytest.MonkeyPatch,
    routes: Routes,
    engine: Scripted,
    caplog: pytest.LogCaptureFixture,
    job: dict[str, Any],
):
    """The kernel ends its connection, and it ends as that of a client that leaves."""
    monkeypatch.setattr(web, "WRITE_TIMEOUT_S", 0.2)
    engine.let_go.set()
    engine.bodies = [b'{"output":"%s"}' % (b"a" * 4_000_000)] * (2 if job is STREAM else 1)
    async with TestServer(routes.app(), socket_factory=small_buffer) as server:
        with await unread(server, job):
            await until(lambda: routes.open == 1)
            await until(routes.idle.is_set)
            assert routes.running == 0
    assert caplog.messages == []


async def test_a_connection_that_is_idle_ends(monkeypatch: pytest.MonkeyPatch, routes: Routes):
    monkeypatch.setattr(web_front, "_KEEPALIVE_S", 0.2)
    runner = await web_front._listen(routes.app(), 0, "PORT")
    for asked in (b"", b"GET /ping HTTP/1.1\r\n", b"GET /ping HTTP/1.1\r\nHost: here\r\n\r\n"):
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        writer.write(asked)
        async with asyncio.timeout(20):
            assert (await reader.read())[:15] == (b"HTTP/1.1 200 OK" if asked.endswith(b"\n\r\n") else b"")
        writer.close()
    await runner.cleanup()


async def test_a_connection_that_is_idle_holds_no_reply(client: TestClient[Any, Any], routes: Routes, engine: Scripted):
    """It may be so for minutes, and there may be many."""
    engine.let_go.set()
    engine.bodies = [b'{"output":"%s"}' % (b"a" * 4_000_000)]
    raw = json.dumps(JOB).encode()
    reader, writer = await asyncio.open_connection(client.host, client.port)
    tracemalloc.start()
    try:
        for path in (b"runsync", b"v1/x"):
            writer.write(b"POST /%s HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % (path, len(raw)) + raw)
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.partition(b"Content-Length: ")[2].split()[0])
            assert size == len(await reader.readexactly(size)) > 4_000_000
            await until(routes.idle.is_set)
            assert tracemalloc.get_traced_memory()[0] < 2_000_000
    finally:
        tracemalloc.stop()
    writer.close()


@pytest.mark.parametrize("size", [40_000, 4_000_000])
async def test_a_request_is_open_until_its_reply_is_sent(routes: Routes, engine: Scripted, size: int):
    """A worker that stops would take with it what the kernel has not got."""
    engine.let_go.set()
    body = b'{"output":"%s"}' % (b"a" * size)
    engine.bodies = [body, b'{"output":[]}']
    for job in (STREAM, JOB):
        async with TestServer(routes.app(), socket_factory=small_buffer) as server:
            client = await unread(server, job)
            await until(lambda: routes.open == 1)
            await asyncio.sleep(0.2)
            assert routes.open == 1
            got = 0
            while some := await asyncio.get_running_loop().sock_recv(client, 1 << 16):
                got += len(some)
            assert got > size
            client.close()
            await until(routes.idle.is_set)
        engine.bodies = [body]


async def test_a_client_of_http_1_0_learns_where_a_stream_ends(client: TestClient[Any, Any], engine: Scripted):
    engine.let_go.set()
    engine.bodies = [b'{"output":[1]}', b'{"output":[]}']
    reader, writer = await asyncio.open_connection(client.host, client.port)
    raw = json.dumps(STREAM).encode()
    writer.write(b"POST /runsync HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
    async with asyncio.timeout(20):
        reply = await reader.read()
    writer.close()
    assert reply.endswith(b'\r\n\r\n{"output":[1]}\n')


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b'{"error":"unreachable, please retry: x"}', 503, "unreachable, please retry: x"),
        (b'{"error":{"code":7},"output":{"a":1}}', 500, '{"code":7}'),
        (EngineError("it failed"), 500, "worker fault: it failed"),
    ],
    ids=["told", "own-form", "raised"],
)
async def test_a_failed_job_is_no_success(
    client: TestClient[Any, Any], routes: Routes, engine: Scripted, body: bytes | Exception, status: int, error: str
):
    engine.let_go.set()
    engine.bodies = [body]
    for asked in (JOB, STREAM):
        reply = await client.post("/runsync", json=asked)
        assert (reply.status, (await reply.json())["error"]) == (status, error)
    reply = await client.post("/v1/embeddings", json={})
    assert (reply.status, (await reply.json())["error"]["message"]) == (status, error)
    assert routes.counts.report() == {"jobs_done": 0, "jobs_failed": 3}


@pytest.mark.parametrize(
    "last", [b'{"error":"worker fault: it failed"}', EngineError("it failed")], ids=["told", "raised"]
)
async def test_a_stream_that_fails_says_so_in_its_last_line(
    client: TestClient[Any, Any], routes: Routes, engine: Scripted, last: bytes | Exception
):
    engine.let_go.set()
    engine.bodies = [b'{"output":[1]}', last, b'{"output":[2]}']
    reply = await client.post("/runsync", json=STREAM)
    assert reply.status == 200
    lines = [json.loads(line) async for line in reply.content]
    assert lines == [{"output": [1]}, {"error": "worker fault: it failed"}]
    assert routes.counts.report() == {"jobs_done": 0, "jobs_failed": 1}


async def test_a_reply_that_has_no_parts_is_a_line(client: TestClient[Any, Any], routes: Routes, engine: Scripted):
    engine.let_go.set()
    for bodies in ([b'{"output":[]}'], [b'{"output":{"a":1}}'], [b'{"output":[]}', b'{"output":[]}']):
        engine.bodies = [*bodies]
        reply = await client.post("/runsync", json=STREAM)
        assert await reply.text() == bodies[0].decode() + "\n"
    for route in ("/runsync", "/v1/x"):
        engine.bodies = [b'{"output":1}']
        assert (await client.post(route, json=JOB)).status == 200
    assert routes.counts.report() == {"jobs_done": 5, "jobs_failed": 0}


@pytest.mark.parametrize(
    ("bodies", "lines"),
    [
        ([b'{"output":[1]}', END, b'{"output":[2]}', END], [[1], [], [2]]),
        ([b'{"output":[1]}', END, END, END], [[1], [], []]),
        ([END, b'{"output":[1]}', END], [[], [1]]),
        ([b'{"output":[1]}', END, b'{"error":"no"}'], [[1], [], "no"]),
        ([b'{"output":[1]}', END, EngineError("no")], [[1], [], "worker fault: no"]),
    ],
)
async def test_a_part_that_is_an_empty_list_is_a_line_and_ends_no_stream(
    client: TestClient[Any, Any], engine: Scripted, bodies: list[bytes | Exception], lines: list[Any]
):
    engine.let_go.set()
    engine.bodies = bodies
    reply = await client.post("/runsync", json=STREAM)
    assert [next(iter(json.loads(line).values())) async for line in reply.content] == lines


async def test_a_client_that_leaves_a_stream_makes_room(
    client: TestClient[Any, Any], routes: Routes, engine: Scripted, caplog: pytest.LogCaptureFixture
):
    engine.bodies = [b'{"output":[%s1]}' % (b"1," * 100_000)] * 3
    reply = await client.post("/runsync", json=STREAM)
    await reply.content.readany()
    reply.close()
    await until(routes.idle.is_set)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ('[{"a":1}]', '{"a":1}'),
        ("[{}]", "{}"),
        ("[]", "[]"),
        ("[[]]", "[]"),
        ('["}]}"]', '"}]}"'),
        ('{"b":[]}', '{"b":[]}'),
        ('{"b":[{}]}', '{"b":[{}]}'),
        ("null", "null"),
        ('[{"a":1},{"b":2}]', '{"a":1}'),
        ('[{"a":1},2,{"b":2}]', '{"a":1}'),
        ('[{"a":1},[{"b":2}]]', '{"a":1}'),
        ('[[{"a":1}],{"b":2}]', '[{"a":1}]'),
        ('[{"a":[{"b":"c"},{}]},{"a":[{}]}]', '{"a":[{"b":"c"},{}]}'),
        ('[{"a}]}":"[{{"}]', '{"a}]}":"[{{"}'),
        ('[{"a":"{{{"},{"b":"}}}"}]', '{"a":"{{{"}'),
        ('[{"a":"\\"},{\\""}]', '{"a":"\\"},{\\""}'),
        ('[{"a":"\\\\"},{"b":"\\\\"}]', '{"a":"\\\\"}'),
        ('[{"a":"\u00e9\u20ac"}]', '{"a":"\u00e9\u20ac"}'),
    ],
)
async def test_openai_clients_get_the_first_of_the_list_or_the_whole(
    client: TestClient[Any, Any], engine: Scripted, output: str, answer: str
):
    engine.let_go.set()
    for more in ("", ',"stopPod":true'):
        engine.bodies = [f'{{"output":{output}{more}}}'.encode()]
        assert await (await client.get("/openai/v1/models")).text() == answer


async def test_openai_clients_get_the_numbers_as_they_were_written(client: TestClient[Any, Any], engine: Scripted):
    """Nobody has read them on the way, which takes the time of all who wait."""
    engine.let_go.set()
    numbers = '{"data":[{"embedding":[0.10,18446744073709551616]},{"embedding":[-1.5e-7]}],"model":"}{"}'
    engine.bodies = [f'{{"output":[{numbers}]}}'.encode()]
    assert await (await client.post("/v1/embeddings", json={})).text() == numbers


@pytest.mark.parametrize(
    ("body", "plain", "asks"),
    [
        (b'{"output":{"a":1},"stopPod":true}', {"output": {"a": 1}}, True),
        (b'{"stopPod":true}', {"output": None}, True),
        (b'{"error":"no","output":1,"stopPod":true}', {"error": "no", "output": 1}, True),
        (b'{"output":{"stopPod":true}}', {"output": {"stopPod": True}}, False),
    ],
)
async def test_what_asks_for_a_fresh_worker_is_told_apart_from_the_reply(
    client: TestClient[Any, Any],
    routes: Routes,
    engine: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    body: bytes,
    plain: dict[str, Any],
    asks: bool,
):
    asked: list[bool] = []
    monkeypatch.setattr(routes, "_on_refresh", lambda: asked.append(True))
    engine.let_go.set()
    failed = "error" in plain
    for path in ("/runsync", "/v1/x"):
        engine.bodies = [body]
        reply = await client.post(path, json=JOB)
        found = await reply.json()
        assert reply.status == (500 if failed else 200)
        if failed:
            assert "stopPod" not in found
        else:
            assert (found if path == "/v1/x" else found["output"]) == plain["output"]
            assert path == "/v1/x" or set(found) == {"id", "status", "output"}
    engine.bodies = [b'{"output":1}', body, END]
    reply = await client.post("/runsync", json=STREAM)
    assert [json.loads(line) async for line in reply.content] == [{"output": 1}, plain]
    assert asked == [True] * 3 * asks


async def test_health_of_an_engine_that_fails_is_a_failure(client: TestClient[Any, Any]):
    reply = await client.get("/health")
    assert (reply.status, await reply.json()) == (500, {"error": "worker fault: it has ended"})
