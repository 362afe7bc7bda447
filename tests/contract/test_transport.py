"""Results on their way to gateways that break off, fall silent, or refuse."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import orjson
import pytest

from handler import sdk as sdk_module
from handler.transport import Results

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LARGE = b'{"output": "' + b"x" * 3_000_000 + b'"}'


@asynccontextmanager
async def results_to(answer: Answer, timeout_s: float) -> AsyncIterator[Results]:
    """Results that are posted to a server which does with each connection what `answer` does."""
    open_ones = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_ones
        open_ones += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await answer(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        open_ones -= 1

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/job-done/$ID?a=b"
    results = Results(replace(sdk_module.load(), job_done_url=url, job_stream_url=url), timeout_s)
    try:
        yield results
    finally:
        results.close()
        server.close()
        while open_ones:
            await asyncio.sleep(0.01)


async def head_of(reader: asyncio.StreamReader) -> int:
    """The length of the body that follows."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head.lower())
    assert found
    return int(found[1])


@pytest.mark.parametrize("rest", ["is cut", "never comes"])
async def test_a_status_decides_whatever_becomes_of_the_rest_of_the_reply(rest: str):
    posted = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        posted.append(await reader.readexactly(await head_of(reader)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok")
        if rest == "never comes":
            await reader.read()  # until the client has had enough

    begin = time.monotonic()
    async with results_to(answer, 5.0) as results:
        assert await results.send("1", b'{"output": 1}')
    assert posted == [b'{"output": 1}']
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\n",
            "refused the result with status 413",
        ),
        (b"", "the result (3.0 MB) did not arrive within 0.3 s"),
    ],
    ids=["413", "reset"],
)
async def test_a_gateway_that_does_not_even_read_a_large_result_gets_a_short_one(words: bytes, said: str):
    """The connection ends while the body is being sent, with a status before it or without."""
    posted = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = await head_of(reader)
        if length < 1_000_000:
            posted.append(orjson.loads(await reader.readexactly(length)))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(words)
            writer.transport.abort()

    async with results_to(answer, 0.3) as results:
        assert await results.send("1", LARGE)
    (body,) = posted
    assert body["error"].startswith("worker fault: ")
    assert said in body["error"] or "did not arrive" in body["error"]


async def test_a_machine_that_slept_through_the_time_for_a_result_tries_once_more():
    """The clock went on; here the time is over from the start."""
    posted = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        posted.append(await reader.readexactly(await head_of(reader)))
        if len(posted) > 1:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with results_to(answer, 0.0) as results:
        assert await results.send("1", b'{"output": 1}')
    assert len(posted) == 2
