"""Names that are looked up slowly, or never: nobody waits for another one's question, and nothing for a dead one."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from handler.protocol import connections, names
from handler.protocol.connections import Client
from tests.scripted_server import replies, serving

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Resolver:
    """Knows the host `name`, once it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.asked: list[Any] = []
        self.error: OSError | None = None
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._resolve)

    def _resolve(self, host: bytes, port: int, **options: int) -> list[Any]:
        if options["flags"] & socket.AI_NUMERICHOST:
            return self._real(host, port, **options)
        assert host == b"name"
        self.asked.append(port)
        self.go.wait()
        if self.error:
            raise self.error
        return self._real("127.0.0.1", port, **options)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    monkeypatch.setattr(names, "_answers", {})
    made = Resolver(monkeypatch)
    yield made
    made.go.set()


async def test_those_who_ask_at_once_get_one_answer(resolver: Resolver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(names, "_FRESH_S", 0.0)
    client = Client({})
    async with serving(replies(OK)) as server:
        url = f"http://name:{server.port}/"
        asking = [asyncio.create_task(client.get(url)) for _ in range(12)]
        await asyncio.sleep(0.05)
        resolver.go.set()
        assert {reply.status for reply in await asyncio.gather(*asking)} == {200}
        assert resolver.asked == [server.port]
        client.close()
        later = Client({})
        await later.get(url)
        assert resolver.asked == [server.port] * 2  # by then it may have moved
        later.close()


async def test_who_comes_a_moment_later_need_not_ask(resolver: Resolver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(names, "_FRESH_S", 60.0)
    resolver.go.set()
    found = [await names.addresses("name", 80) for _ in range(2)]
    assert found[0] == found[1]
    assert resolver.asked == [80]


async def test_who_tries_again_finds_the_question_as_far_as_it_is(resolver: Resolver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "_CONNECT_S", 0.05)
    client = Client({})
    async with serving(replies(OK)) as server:
        url = f"http://name:{server.port}/"
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await client.get(url)
        assert (await client.get(server.url)).body == b"ok"  # other hosts are reached meanwhile
        monkeypatch.setattr(connections, "_CONNECT_S", 10.0)
        waiting = asyncio.create_task(client.get(url))
        await asyncio.sleep(0.05)
        resolver.go.set()
        assert (await waiting).body == b"ok"
        assert resolver.asked == [server.port]
        client.close()


async def test_an_error_is_told_to_all_who_asked_and_not_kept(resolver: Resolver):
    resolver.error = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    asking = [asyncio.create_task(names.addresses("name", 80)) for _ in range(3)]
    await asyncio.sleep(0.05)
    resolver.go.set()
    assert await asyncio.gather(*asking, return_exceptions=True) == [resolver.error] * 3
    resolver.error = None
    assert (await names.addresses("name", 80))[0][4] == ("127.0.0.1", 80)
    assert resolver.asked == [80, 80]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_number_needs_no_thread(host: str, monkeypatch: pytest.MonkeyPatch):
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert (await names.addresses(host, 80))[0][4][:2] == (host, 80)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            await names.addresses("name", 80)


def test_an_event_loop_ends_while_a_name_is_looked_up(resolver: Resolver):
    async def ask() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(names.addresses("name", 81), 0.05)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ask())
    assert not resolver.go.is_set()


_SLOW = """if True:
    import asyncio, fcntl, socket, struct, sys, threading, uvloop
    from handler.protocol import connections

    with socket.socket() as any_socket:  # the loopback device of a new network is off
        lo = struct.pack("16sh14x", b"lo", 1)
        fcntl.ioctl(any_socket, 0x8914, lo)

    silent, good = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    silent.bind(("127.0.0.1", 53))
    good.bind(("127.0.0.2", 53))

    def answer():
        while True:
            asked, whence = good.recvfrom(2000)
            end = asked.index(b"\\0", 12) + 5
            is_v4 = asked[end - 3] == 1
            found = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4\\x7f\\0\\0\\1" if is_v4 else b""
            good.sendto(asked[:2] + b"\\x81\\x80\\0\\1\\0%c\\0\\0\\0\\0" % is_v4 + asked[12:end] + found, whence)

    threading.Thread(target=answer, daemon=True).start()

    async def reply(reader, writer):
        await reader.readuntil(b"\\r\\n\\r\\n")
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")

    async def main():
        await asyncio.start_server(reply, "127.0.0.1", 8000)
        connections._CONNECT_S = 3.0
        client = connections.Client({})
        found = await asyncio.gather(*(client.get("http://api.example.org:8000/") for _ in range(12)))
        print(*(one.status for one in found))
        client.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
"""


def test_a_silent_name_server_before_a_good_one(tmp_path: Path):
    """The system's resolver asks the first for a second each time, in a network of its own."""
    own = ["unshare", "--map-root-user", "--mount", "--net"]
    try:
        subprocess.run([*own, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        # Some containers lack that right; the tests above hold our own part without it.
        pytest.skip("no network of one's own to be had here")
    servers = tmp_path / "resolv.conf"
    servers.write_text("nameserver 127.0.0.1\nnameserver 127.0.0.2\noptions timeout:1\n")
    script = 'mount --bind "$1" /etc/resolv.conf && exec "$2" -c "$3"'
    ran = subprocess.run(
        [*own, "sh", "-c", script, "sh", str(servers), sys.executable, _SLOW], capture_output=True, text=True
    )
    assert (ran.stdout.split(), ran.stderr) == (["200"] * 12, "")
