"""Connections to the emulated endpoint, counted in front of it: opened ahead of need, used, kept, and watched over."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohappyeyeballs
import pytest

from benchmarks.emulator import Emulator
from handler.job_loop import JobLoop
from handler.protocol import sdk as sdk_module
from handler.protocol import transport
from handler.protocol.connections import Client
from handler.protocol.http1 import Connection
from handler.protocol.sdk import Sdk
from tests.loops import bodies, until


@dataclass
class Gate:
    """Passes bytes on to a port; which connections it has seen, in order, and what was sent over each."""

    url: str = ""
    sent: list[bytes] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def has_seen(self, connections: int) -> None:
        async with asyncio.timeout(10):
            while len(self.sent) < connections:
                await asyncio.sleep(0.005)

    def of(self, path: bytes) -> list[int]:
        """The connections over which something under `path` was asked for."""
        return [number for number, sent in enumerate(self.sent) if path in sent]


@asynccontextmanager
async def gate_to(url: str) -> AsyncIterator[Gate]:
    there, found, running = urlsplit(url), Gate(), set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(found.sent)
        found.sent.append(b"")
        found.writers.append(writer)
        back, out = await asyncio.open_connection(there.hostname, there.port)
        task = asyncio.ensure_future(pump(back, writer))
        running.add(task)
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                found.sent[number] += data
                out.write(data)
        out.close()
        await task
        running.discard(task)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        server.close()
        while running:
            await asyncio.sleep(0.01)


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(long_poll_s=1.0) as running:
        yield running


@pytest.fixture
async def gate(emulator: Emulator) -> AsyncIterator[Gate]:
    async with gate_to(emulator.url) as running:
        yield running


@pytest.fixture
def sdk(emulator: Emulator, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Sdk:
    """The real SDK, which comes to the emulator through the gate."""
    loaded = sdk_module.load()
    from runpod.serverless.modules import rp_job

    env = {name: value.replace(emulator.url, gate.url) for name, value in emulator.worker_env("worker-1").items()}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RUNPOD_ENDPOINT_ID")
    monkeypatch.setattr(rp_job, "JOB_GET_URL", env["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", "worker-1"))
    loaded.progress.clear()
    return replace(
        loaded,
        job_take_url=rp_job.JOB_GET_URL,
        job_done_url=env["RUNPOD_WEBHOOK_POST_OUTPUT"].replace("$RUNPOD_POD_ID", "worker-1"),
    )


async def test_the_first_take_and_the_first_result_find_connections_that_were_opened_while_the_engine_loaded(
    sdk: Sdk, emulator: Emulator, gate: Gate
):
    async def echo(job: dict[str, Any]) -> Any:
        return job["input"]

    ready = asyncio.Event()
    loop = JobLoop(sdk, bodies(echo), concurrency=1)
    serving = asyncio.create_task(loop.run(ready=ready.wait()))
    await gate.has_seen(2)
    assert gate.sent == [b"", b""]  # nothing is asked for before the engine is there
    record = emulator.submit({"x": 1})
    ready.set()
    assert (await emulator.wait(record)).output == {"x": 1}
    loop.stop()
    await serving
    assert sorted(gate.of(b"/job-take/") + gate.of(b"/job-done/")) == [0, 1]
    assert gate.of(b"/job-stop/") == [2]
    assert len(gate.sent) == 3


@pytest.mark.parametrize(("seconds", "waits_s"), [(0.2, 5.0), (20.0, 0.05)], ids=["late", "never"])
async def test_a_connection_that_is_being_opened_when_the_engine_is_ready_is_waited_for_but_not_for_long(
    sdk: Sdk,
    emulator: Emulator,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    waits_s: float,
):
    connect, calls = aiohappyeyeballs.start_connection, []

    async def first_two_slow(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) <= 2:
            await asyncio.sleep(seconds)
        return await connect(*args, **options)

    monkeypatch.setattr("handler.protocol.connections.start_connection", first_two_slow)
    monkeypatch.setattr("handler.job_loop.AHEAD_S", waits_s)
    monkeypatch.setattr(transport, "AHEAD_S", waits_s)
    loop = JobLoop(sdk, bodies(lambda job: 1), concurrency=1)
    serving = asyncio.create_task(loop.run(ready=asyncio.sleep(0)))
    assert (await emulator.wait(emulator.submit({"x": 1}), 5)).output == 1
    loop.stop()
    await serving
    assert len(calls) == (3 if seconds < 1 else 5)  # of jobs, of results, of stop signals; the first two again
    assert len(gate.sent) == 3


async def test_after_a_pause_the_connection_for_a_result_is_opened_while_its_job_runs(
    sdk: Sdk, emulator: Emulator, gate: Gate, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transport, "_RECENT_S", 0.0)

    async def handler(job: dict[str, Any]) -> Any:
        await gate.has_seen(job["input"]["connections"])
        return len(gate.of(b"/job-done/"))

    loop = JobLoop(sdk, bodies(handler), concurrency=1)
    serving = asyncio.create_task(loop.run())
    assert (await emulator.wait(emulator.submit({"connections": 3}))).output == 0
    assert (await emulator.wait(emulator.submit({"connections": 3}))).output == 1  # it was kept
    await until(lambda: not sdk.progress.get_job_count())  # it has heard of that
    (of_results,) = gate.of(b"/job-done/")
    gate.writers[of_results].close()  # by the server, which has seen nothing for too long
    assert (await emulator.wait(emulator.submit({"connections": 4}))).output == 1
    loop.stop()
    await serving
    assert len(gate.of(b"/job-done/")) == 2
    assert len(gate.sent) == 4


async def test_an_engine_that_does_not_start_leaves_no_connection_open(sdk: Sdk, gate: Gate):
    async def failing() -> None:
        await gate.has_seen(2)
        raise RuntimeError("no engine")

    loop = JobLoop(sdk, bodies(lambda job: None), concurrency=1)
    with pytest.raises(RuntimeError, match="no engine"):
        await loop.run(ready=failing())
    assert gate.sent == [b"", b""]


async def test_nobody_to_connect_to_is_told_by_the_request_that_follows():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
    client = Client({})
    await client.open_ahead(url)
    await client.open_ahead("no address")
    with pytest.raises(ConnectionRefusedError):
        await client.get(url)


async def test_a_peer_that_is_gone_is_noticed(gate: Gate):
    """The kernel asks whether it is there, and gives up what nobody acknowledges: the options arrive at the socket."""
    used: list[Connection] = []
    client = Client({})
    await client.get(gate.url, used.append)
    (connection,) = used
    assert connection.transport is not None
    found = connection.transport.get_extra_info("socket")
    assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
    assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    client.close()


async def test_a_sandbox_without_these_options_gets_connections_all_the_same(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
):
    class Simple(socket.socket):
        # The real one also takes no value, and a length: nobody here does.
        def setsockopt(self, level: int, option: int, value: Any) -> None:  # type: ignore[override]
            if level == socket.SOL_SOCKET or option != socket.TCP_NODELAY:
                raise OSError(92, "Protocol not available")
            super().setsockopt(level, option, value)

    monkeypatch.setattr("handler.protocol.connections.socket", SimpleNamespace(**{**vars(socket), "socket": Simple}))
    client = Client({})
    assert (await client.get(gate.url)).status == 404
    client.close()


def test_to_connect_takes_no_thread():
    """libuv ends a process that may have none for it."""
    code = """if True:
        import asyncio, os, socket, uvloop
        from handler.protocol.connections import Client
        async def main():
            with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as closed:
                closed.bind(("127.0.0.1", 0))  # and does not listen
                url, nowhere = (f"http://127.0.0.1:{one.getsockname()[1]}/" for one in (server, closed))
                client = Client({})
                await client.open_ahead(url)
                server.settimeout(10)
                server.accept()
                try:
                    await client.get(nowhere)
                except ConnectionRefusedError:
                    print(*os.listdir("/proc/self/task"))
        asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 1
