"""Results on their way to gateways that break off, fall silent, or refuse; jobs that come as their poll is given up."""

import asyncio
import ssl
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohappyeyeballs
import orjson
import pytest

from engine.errors import WorkerFault
from handler.protocol import connections, take_body, transport, trust
from handler.protocol import sdk as sdk_module
from handler.protocol.transport import Poll, Results
from tests.loops import until
from tests.scripted_server import Server, replies, serving
from tests.tls_server import certificate

LARGE = b'{"output": "' + b"x" * 3_000_000 + b'"}'
LISTED = b'{"output":[' + b"1" * 1_000_001 + b"]}"


def with_status(status: int) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status


def results_of(server: Server, timeout_s: float) -> Results:
    url = f"{server.url}/$ID?a=b"
    return Results(replace(sdk_module.load(), job_done_url=url, job_stream_url=url), timeout_s)


@pytest.mark.parametrize("rest", ["is cut", "never comes"])
async def test_a_status_decides_whatever_becomes_of_the_rest_of_the_reply(rest: str):

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, 0)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok")
        if rest == "never comes":
            await reader.read()  # until the client has had enough

    begin = time.monotonic()
    async with serving(script) as server:
        with closing(results_of(server, 5.0)) as results:
            assert await results.send("1", b'{"output": 1}')
        assert server.bodies == [b'{"output": 1}']
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

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = await server.request(reader, 0, with_body=False)
        if length < 1_000_000:
            server.bodies.append(await reader.readexactly(length))
            writer.write(with_status(200))
        else:
            writer.write(words)
            writer.transport.abort()

    async with serving(script) as server:
        with closing(results_of(server, 0.3)) as results:
            assert not await results.send("1", LARGE)
    body = orjson.loads(*server.bodies)
    assert body["error"].startswith(("worker fault: ", "invalid input: RunPod refused the result with status 413"))
    assert said in body["error"] or "did not arrive" in body["error"]


async def test_a_machine_that_slept_through_the_time_for_a_result_tries_once_more():
    """The clock went on; here the time is over from the start."""
    async with serving(replies(None, with_status(200))) as server:
        with closing(results_of(server, 0.0)) as results:
            assert await results.send("1", b'{"output": 1}')
        assert len(server.bodies) == 2


async def test_a_certificate_that_is_not_trusted_now_may_be_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Python's exception for it is a ValueError, as that for what is no address."""
    trusting = server_context(tmp_path, monkeypatch)
    contexts = [ssl.create_default_context() for _ in range(3)] + [trust.context()]
    monkeypatch.setattr(trust, "context", lambda: contexts.pop(0))
    read: list[bool] = []
    monkeypatch.setattr(trust, "read_all", lambda: read.append(True))
    async with serving(replies(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), tls=trusting) as server:
        results = Results(replace(sdk_module.load(), job_done_url=f"{server.url}/$ID?a=b"), 5.0)
        assert await results.send("1", b'{"output": 1}')
        results.close()
        assert not contexts
        assert len(read) == 3  # the authorities that were not known yet


async def test_a_redirect_to_nowhere_does_not_end_the_attempts():
    nowhere = b"HTTP/1.1 307 Go\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n"
    async with serving(replies(nowhere, nowhere, nowhere, with_status(200))) as server:
        results = Results(replace(sdk_module.load(), job_done_url=f"{server.url}/$ID?a=b"), 5.0)
        assert await results.send("1", b'{"output": 1}')
        results.close()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, in s, without the share that is left to chance; none of them is slept."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(round(seconds / 0.75, 9))

    monkeypatch.setattr(transport, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    monkeypatch.setattr(transport, "random", SimpleNamespace(uniform=lambda low, high: (low + high) / 2))
    return pauses


@pytest.mark.parametrize(
    ("said", "timeout_s", "pauses", "end"),
    [
        # A gateway that starts anew says 502, then 404, before it knows the way again: refusals count by themselves.
        ([502, 502, 404, 502, 404, 200], 60, [0.1, 0.2, 1, 2, 4], ""),
        ([404, 502, 404, 502, 502, 404], 60, [1, 2, 4, 5, 5], "RunPod refused a result with status 404"),
        ([408, 408, 408, 425, 425, 425, 429, 429, 429, 299], 60, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5], ""),
        ([500, 500, 500, 500, 200], 60, [0.1, 0.2, 0.4, 0.8], ""),
        ([300, 300, 300], 60, [1, 2], "RunPod refused a result with status 300"),
        ([502] * 6, 3, [0.1, 0.2, 0.4, 0.8, 1.6], "giving up on sending a result after 0 s: status 502"),
        ([502, 502], 0, [0.1], "giving up on sending a result after 0 s: status 502"),
    ],
)
async def test_a_result_is_tried_again_ever_later_and_a_refusal_is_believed_the_third_time(
    slept: list[float],
    capsys: pytest.CaptureFixture[str],
    said: list[int],
    timeout_s: float,
    pauses: list[float],
    end: str,
):
    async with serving(replies(*map(with_status, said))) as server:
        with closing(results_of(server, timeout_s)) as results:
            assert await results.send("1", b'{"output": 1}') == (not end)
        assert (slept, server.bodies) == (pauses, [b'{"output": 1}'] * len(said))
    told = capsys.readouterr().out
    assert told.count("trying again in") == len(pauses)
    assert f"ERROR | 1 | {end}" in told if end else "ERROR" not in told


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "worker fault: RunPod refused the result with status 400 (0.0 MB); ask for less"),
        (
            413,
            "invalid input: RunPod refused the result with status 413 (0.0 MB), for it is too large; ask for fewer "
            "items at once, or for `stream` or `encoding_format` base64 where the task has it",
        ),
    ],
)
async def test_a_result_that_is_refused_for_good_is_replaced_by_an_error_that_says_so(
    slept: list[float], status: int, said: str
):
    attempts = 1 if status == 413 else 2
    async with serving(replies(*[with_status(status)] * attempts, with_status(200))) as server:
        with closing(results_of(server, 0.0)) as results:
            assert not await results.send("1", b'{"output": 1}', stream=True)
        assert server.bodies[:-1] == [b'{"output": 1}'] * attempts
        assert orjson.loads(server.bodies[-1]) == {"error": said}
        assert all(b"isStream=true" in head for head in server.heads)


async def test_a_large_result_that_is_taken_stays():
    async with serving(replies(with_status(200))) as server:
        with closing(results_of(server, 0.0)) as results:
            assert await results.send("1", LARGE)
        assert server.bodies == [LARGE]


async def test_an_error_in_the_place_of_a_large_result_is_tried_once(slept: list[float]):
    async with serving(replies(None)) as server:
        with closing(results_of(server, 0.0)) as results:
            assert not await results.send("1", LARGE)
        assert server.bodies[:-1] == [LARGE] * 2
        assert b"did not arrive within 0 s" in server.bodies[-1]


@pytest.mark.parametrize(
    ("body", "fails"), [(b'{"output":[1]}', [with_status(413)]), (LISTED, [None, None])], ids=["refused", "lost"]
)
async def test_a_list_of_parts_that_does_not_arrive_is_left_out(
    slept: list[float], body: bytes, fails: list[bytes | None]
):
    """RunPod has the parts."""
    async with serving(replies(*fails, with_status(200))) as server:
        with closing(results_of(server, 0.0)) as results:
            assert await results.send("1", body, stream=True)
        assert server.bodies == [*[body] * len(fails), b'{"output":[]}']


async def test_a_part_of_a_stream_that_is_not_taken_is_told(slept: list[float]):
    async with serving(replies(with_status(200), with_status(300))) as server:
        with closing(results_of(server, 60.0)) as results:
            await results.send_chunk("1", b"1")
            with pytest.raises(
                WorkerFault, match=r"part of the stream \(0.0 MB\) was refused by RunPod with status 300"
            ):
                await results.send_chunk("1", b"2")
        assert b"isStream=false" in server.heads[0]


async def test_an_attempt_has_60_s_or_what_is_left_and_one_that_nobody_waits_for_10_s(
    monkeypatch: pytest.MonkeyPatch, slept: list[float], capsys: pytest.CaptureFixture[str]
):
    """Not less than 5: two there are at least."""
    limits: list[float] = []
    now = [0.0]

    def timeout(seconds: float) -> asyncio.Timeout:
        limits.append(seconds)
        now[0] += seconds
        return asyncio.timeout(0.02)

    monkeypatch.setattr(transport, "time", SimpleNamespace(monotonic=lambda: now[0]))

    monkeypatch.setattr("handler.protocol.transport.asyncio.timeout", timeout)

    async def silent(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, 0)
        await reader.read()

    async with serving(silent) as server:
        for timeout_s in (125.0, 80.0, 1.0):
            with closing(results_of(server, timeout_s)) as results:
                assert not await results.send("1", b'{"output": 1}')
        with closing(results_of(server, 1.0)) as results:
            await results.send_progress("1", b"{}")
    assert limits == [60.0, 60.0, 5.0, 60.0, 20.0, 5.0, 5.0, 10.0]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ERROR")]
    assert [line.split(" after ")[1] for line in told] == [f"{seconds} s: TimeoutError: " for seconds in (125, 80, 10)]


async def test_an_id_that_no_address_can_carry_is_sent_as_far_as_it_can():
    """JSON can carry half a surrogate pair."""
    async with serving(replies(with_status(200))) as server:
        with closing(results_of(server, 60.0)) as results:
            assert await results.send("a\ud800", b'{"output": 1}')
        head = server.heads[0].decode().lower()
        assert head.startswith("post /a%3f?a=b&isstream=false http")
        assert "\r\nx-request-id: a%3f\r\n" in head
        assert [line for line in head.splitlines() if line.startswith("content-type")] == [
            "content-type: application/x-www-form-urlencoded"
        ]


async def test_a_connection_is_kept_though_its_reply_comes_in_pieces():
    async def slow(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await server.request(reader, server.accepted)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            await asyncio.sleep(0.05)
            writer.write(b"ok")

    async with serving(slow) as server:
        with closing(results_of(server, 60.0)) as results:
            assert await results.send("1", b"1")
            assert await results.send("1", b"2")
        assert server.accepted == 1


async def test_a_connection_for_results_is_opened_ahead_where_none_was_used_a_moment_ago():
    asked, release = asyncio.Event(), asyncio.Event()

    async def held(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, 0)
        asked.set()
        await release.wait()
        writer.write(with_status(200))

    async with serving(held) as server:
        with closing(results_of(server, 60.0)) as results:
            results.open_ahead()
            results.open_ahead()  # while that is under way
            sending = asyncio.create_task(results.send("1", b"1"))
            await asked.wait()
            results.open_ahead()
            await asyncio.sleep(0.05)
            assert server.accepted == 1
            release.set()
            assert await sending


async def test_a_connection_that_was_opened_ahead_and_has_ended_is_opened_again():
    async def ends(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pass

    async with serving(ends) as server:
        with closing(results_of(server, 60.0)) as results:
            for count in (1, 2):
                results.open_ahead()
                async with asyncio.timeout(5):
                    while server.accepted < count or server.open:
                        await asyncio.sleep(0.01)
                await asyncio.sleep(0.05)  # until its end is here


async def test_a_connection_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    connect, calls = aiohappyeyeballs.start_connection, []

    async def first_never(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            await asyncio.sleep(20)
        return await connect(*args, **options)

    monkeypatch.setattr(connections, "start_connection", first_never)
    monkeypatch.setattr(transport, "AHEAD_S", 0.05)
    async with serving(replies(with_status(200))) as server:
        with closing(results_of(server, 60.0)) as results:
            results.open_ahead()
            assert await asyncio.wait_for(results.send("1", b"1"), 5)


# Polls that are given up


def job(mark: bytes = b"") -> bytes:
    body = mark + b'{"id": "1", "input": 2}'
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def server_context(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Of a server that is trusted from now on."""
    pem = certificate(folder, "localhost")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pem)
    client = ssl.create_default_context(cafile=str(pem))
    monkeypatch.setattr(trust, "context", lambda: client)
    return made


@asynccontextmanager
async def polling(url: str, leave_s: float = 0.1) -> AsyncIterator[Poll]:
    loaded = sdk_module.load()
    from runpod.serverless.modules import rp_job

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rp_job, "JOB_GET_URL", f"{url}/job-take/1?a=b")
        patch.setattr(transport, "_SETTLE_S", 0.1)
        patch.setattr(transport, "_LEAVE_S", leave_s)
        poll = Poll(loaded)
        try:
            yield poll
        finally:
            poll.close()


@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("given_up", ["by a stop", "by the time limit"])
async def test_a_job_that_comes_as_its_poll_is_given_up_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over_tls: bool, given_up: str
):
    """Without TLS the server is told, and says its last word then; with TLS a reply has some time to begin."""

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, server.accepted - 1)
        if over_tls:
            await until(lambda: poll._jobs_client.leaving)
        else:
            assert await reader.read() == b""
            waited.append(time.monotonic() - poll._jobs_session.asked_at)
        if server.accepted == 1:
            writer.write(job()[:-1])
            await asyncio.sleep(transport._LEAVE_S + 0.1)  # a reply that has begun has more
            writer.write(job()[-1:])
            await reader.read()
        elif over_tls:
            await reader.read()

    waited: list[float] = []
    monkeypatch.setattr(transport, "_POLL_TIMEOUT_S", 0.5 if given_up == "by the time limit" else 90.0)
    async with (
        serving(script, tls=server_context(tmp_path, monkeypatch) if over_tls else None) as server,
        polling(server.url, leave_s=0.5) as poll,
    ):
        for found in ([{"id": "1", "input": 2}], []):
            taking = asyncio.create_task(poll.take(1))
            before = len(server.heads)
            while len(server.heads) == before and not taking.done():
                await asyncio.sleep(0)
            if given_up == "by a stop":
                poll.leave()
                poll.leave()
            assert await taking == found
        assert all(each >= 0.1 for each in waited)  # since it was asked
        poll.leave()  # when nothing is taken


@pytest.mark.parametrize("again", [False, True])
async def test_a_poll_that_is_given_up_while_it_connects_asks_for_nothing(monkeypatch: pytest.MonkeyPatch, again: bool):
    """For the first time, or again, after the connection that was kept had ended."""
    connecting = asyncio.Event()

    async def slow(*args: Any, **options: Any) -> Any:
        connecting.set()
        await asyncio.Event().wait()

    async with serving(replies(*([job(), None] if again else []), job())) as server, polling(server.url) as poll:
        if again:
            assert len(await poll.take(1)) == 1
        with monkeypatch.context() as patch:
            patch.setattr(connections, "start_connection", slow)
            taking = asyncio.create_task(poll.take(1))
            await connecting.wait()
            poll.leave()
            assert await taking == []
        assert len(server.heads) == (2 if again else 0)
        assert len(await poll.take(1)) == 1


async def test_a_poll_that_was_given_up_or_timed_has_no_hold_on_the_next(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transport, "_POLL_TIMEOUT_S", 0.4)

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for seconds in (0.2, 0.3):
            await server.request(reader, 0)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    ends.append(await reader.read())
            writer.write(job())
        await reader.read()

    ends: list[bytes] = []
    async with serving(script) as server, polling(server.url) as poll:
        monkeypatch.setattr(transport, "_SETTLE_S", 0.25)
        poll.leave()  # when nothing is taken
        for _ in range(2):
            taking = asyncio.create_task(poll.take(1))
            if not ends:
                await asyncio.sleep(0.1)
            if not server.heads[1:]:
                poll.leave()
                poll.leave()
            assert len(await taking) == 1
        assert not ends


@pytest.mark.parametrize("found", [b'{"id": "1", "input": "%s"}', b'\xef\xbb\xbf{"id": "1", "input": "%s"}', b"%s"])
async def test_a_reply_to_a_take_is_held_no_longer_than_it_is_read(found: bytes):
    """The next one may come in minutes."""
    body = found % (b"a" * 4_000_000)
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    async with serving(replies(reply)) as server, polling(server.url) as poll:
        tracemalloc.start()
        try:
            with suppress(ValueError):  # the last one
                await poll.take(1)
            await asyncio.sleep(0)  # what woke this task holds its result until then
            assert tracemalloc.get_traced_memory()[0] < 2_000_000
        finally:
            tracemalloc.stop()
        assert len(server.heads) == 1
        poll.close()


@pytest.mark.parametrize("reply_is_here", [True, False])
async def test_a_job_that_has_to_be_searched_for_is_not_given_up(monkeypatch: pytest.MonkeyPatch, reply_is_here: bool):
    """In a reply of megabytes that takes longer than the poll's last moments."""
    searching, salvage = asyncio.Event(), take_body.salvage
    loop = asyncio.get_running_loop()

    def slow(body: bytes) -> list[dict[str, Any]]:
        loop.call_soon_threadsafe(searching.set)
        time.sleep(0.5)
        return salvage(body)

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, 0)
        if not reply_is_here:
            poll.leave()
            await reader.read()
        writer.write(job("\ufeff".encode()))
        await reader.read()

    monkeypatch.setattr(take_body, "salvage", slow)
    async with serving(script) as server, polling(server.url) as poll:
        taking = asyncio.create_task(poll.take(1))
        await searching.wait()
        poll.leave()
        assert await taking == [{"id": "1", "input": 2}]
        poll.close()


async def test_a_reply_that_has_begun_is_not_disturbed():
    """A server may take the end of our half for the end of all."""

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, 0)
        writer.write(job()[:-1])
        await asyncio.sleep(0.05)
        poll.leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                ends.append(await reader.read())
        writer.write(job()[-1:])
        await reader.read()

    ends: list[bytes] = []
    async with serving(script) as server, polling(server.url) as poll:
        assert await poll.take(1) == [{"id": "1", "input": 2}]
        assert not ends
        poll.close()


CUT = "WARN  | RunPod's reply to a take was cut off, and what jobs it held are lost: "


@pytest.mark.parametrize("stalls", [False, True])
async def test_a_reply_that_has_begun_ends_its_poll_only_where_no_more_of_it_comes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stalls: bool
):
    """Whatever the time limit of a poll. Here each byte has a second, and all of them take two."""

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, 0)
        head, body = job().split(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        for number in range(len(body) - stalls):
            writer.write(body[number : number + 1])
            await asyncio.sleep(2 / len(body))
        await reader.read()

    monkeypatch.setattr(transport, "_POLL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(transport, "_BODY_S", 1.0)
    async with serving(script) as server, polling(server.url) as poll:
        taken = await asyncio.wait_for(poll.take(1), 20)
        assert taken == ([] if stalls else [{"id": "1", "input": 2}])
        assert (CUT + "it took too long" in capsys.readouterr().out) == stalls
        poll.close()


@pytest.mark.parametrize("is_late", [False, True], ids=["within the poll's time", "behind it"])
async def test_a_reply_that_has_begun_gets_20_s_after_a_stop_and_no_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_late: bool
):
    """Here half a second, though more of it comes all the time."""

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, 0)
        writer.write(job()[:-1].replace(b": 23", b": 99999"))
        await until(lambda: poll._jobs_session.connection is not None and poll._jobs_session.connection.replying)
        if is_late:
            await until(lambda: poll._jobs_client.leaving)
        poll.leave()
        left.append(time.monotonic())
        while server.open:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    left: list[float] = []
    monkeypatch.setattr(transport, "_POLL_TIMEOUT_S", 0.1 if is_late else 90.0)
    monkeypatch.setattr(transport, "_BODY_S", 0.5)
    async with serving(script) as server, polling(server.url) as poll:
        assert await asyncio.wait_for(poll.take(1), 20) == []
        assert time.monotonic() - left[0] > 0.45
        assert CUT + "it took too long" in capsys.readouterr().out


async def test_a_reply_that_the_server_cuts_off_as_its_poll_is_given_up_is_told(capsys: pytest.CaptureFixture[str]):
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, 0)
        poll.leave()
        await reader.read()
        writer.write(job()[:-1])

    async with serving(script) as server, polling(server.url) as poll:
        assert await poll.take(1) == []
        assert CUT + "the server has ended the connection" in capsys.readouterr().out


async def test_a_take_over_a_connection_that_nobody_trusts_reads_more_authorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    unknown = server_context(tmp_path, monkeypatch)
    read: list[bool] = []
    monkeypatch.setattr(trust, "context", ssl.create_default_context)
    monkeypatch.setattr(trust, "read_all", lambda: read.append(True))
    async with serving(replies(job()), tls=unknown) as server, polling(server.url) as poll:
        with pytest.raises(ssl.SSLCertVerificationError):
            await poll.take(1)
    assert read


async def test_other_work_goes_on_while_a_poll_is_given_up():
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader, 0)
        poll.leave()
        await reader.read()

    async with serving(script) as server, polling(server.url) as poll:
        taking, turns = asyncio.create_task(poll.take(1)), 0
        while not taking.done():
            turns += len(server.heads)
            await asyncio.sleep(0.005)
        assert turns > 4


async def test_stop_signals_are_asked_for_over_a_connection_that_closes_with_the_poll():
    body = b'{"jobsToStop": ["a", "b"]}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with serving(replies(head + body)) as server, polling(server.url) as poll:
        assert [await poll.stop_signals() for _ in range(2)] == [["a", "b"]] * 2
        assert server.of == [0, 0]
        assert server.heads[0].startswith(b"GET /job-stop/1?a=b HTTP")


@pytest.mark.parametrize(
    ("head", "body", "said"),
    [
        (b"200 OK", b'{"jobsToStop": []}', []),
        (b"204 No Content", b"", []),
        (b"200 OK", b'{"jobsToStop": [1]}', []),
        (b"200 OK", b'{"jobsToStop": "a"}', None),
        (b"200 OK", b"{}", None),
        (b"200 OK", b"[]", None),
        (b"200 OK", b"{", None),
        (b"200 OK\r\nContent-Type: text/html", b"<html>", None),
    ],
)
async def test_only_a_reply_that_tells_of_no_stop_signals_means_that_there_are_none(
    head: bytes, body: bytes, said: list[str] | None
):
    kind = b"" if b"Content-Type" in head else b"\r\nContent-Type: application/json"
    length = b"" if head.startswith(b"204") else b"\r\nContent-Length: %d" % len(body)
    reply = b"HTTP/1.1 " + head + kind + length + b"\r\n\r\n" + body
    async with serving(replies(reply)) as server, polling(server.url) as poll:
        assert await poll.stop_signals() == said
