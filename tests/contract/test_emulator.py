"""The emulated endpoint speaks the protocol: to the real clients, to a minimal worker, to the stock SDK loop."""

import argparse
import asyncio
import contextlib
import functools
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from benchmarks.emulator import Emulator, EmulatorThread, Fault, JobRecord, add_arguments
from benchmarks.emulator.exchange import Exchange
from benchmarks.emulator.jobs import JobStore
from tests.loops import until

ROOT = Path(__file__).parents[2]
SOON_S = 5.0  # an upper bound for what happens at once; no test waits for it to pass


def worker_url(emulator: EmulatorThread, route: str) -> str:
    return f"{emulator.endpoint_url_base}/{emulator.endpoint_id}/{route}/leaving?gpu=x"


def end_a_poll_in_the_instant_of(
    event: Callable[[Emulator], JobRecord], emulator: EmulatorThread, route: str
) -> JobRecord:
    """The emulator reads the end before the poll can run, and cancels it after: on uvloop, in one turn of the loop."""

    def event_and_end(running: Emulator) -> JobRecord:
        record = event(running)
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.1)  # it is on its way, whatever else this machine does
        return record

    url = urlsplit(worker_url(emulator, route))
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(
            f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\nAuthorization: emulator\r\n\r\n".encode()
        )
        time.sleep(0.2)  # until it waits
        record = emulator.call(event_and_end)
        assert connection.recv(1000) == b""
    return record


class Worker:
    """A minimal worker: one method per route, URLs made from the variables as the SDK makes them."""

    def __init__(self, env: dict[str, str], session: aiohttp.ClientSession) -> None:
        self.env, self.session = env, session
        self.headers = {"Authorization": env["RUNPOD_AI_API_KEY"]}

    def url(self, variable: str, job_id: str = "") -> str:
        worker_id = self.env["RUNPOD_POD_ID"]
        url = self.env[variable].replace("$RUNPOD_POD_ID", worker_id)
        return url.replace("$ID", worker_id if variable == "RUNPOD_WEBHOOK_GET_JOB" else job_id)

    async def take(self, count: int = 1) -> list[dict[str, Any]]:
        """Jobs, or [] for 204."""
        url = self.url("RUNPOD_WEBHOOK_GET_JOB")
        if count > 1:
            url = url.replace("/job-take/", "/job-take-batch/") + f"&batch_size={count}"
        async with self.session.get(url + "&job_in_progress=0", headers=self.headers) as response:
            if response.status == 204:
                assert await response.read() == b""
                return []
            response.raise_for_status()
            jobs = await response.json()
            return [jobs] if isinstance(jobs, dict) else jobs

    async def post(self, variable: str, job_id: str, body: Any, is_stream: bool = False) -> int:
        """The status of the reply."""
        data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        headers = self.headers | {"Content-Type": "application/x-www-form-urlencoded", "charset": "utf-8"}
        url = self.url(variable, job_id) + f"&isStream={str(is_stream).lower()}"
        async with self.session.post(url, data=data, headers=headers) as response:
            await response.read()
            return response.status

    async def done(self, job_id: str, body: Any, is_stream: bool = False) -> int:
        return await self.post("RUNPOD_WEBHOOK_POST_OUTPUT", job_id, body, is_stream)

    async def stream(self, job_id: str, chunk: Any) -> int:
        return await self.post("RUNPOD_WEBHOOK_POST_STREAM", job_id, {"output": chunk})

    async def stops(self) -> list[str]:
        url = self.url("RUNPOD_WEBHOOK_GET_JOB").replace("/job-take/", "/job-stop/")
        async with self.session.get(url, headers=self.headers) as response:
            return [] if response.status == 204 else (await response.json())["jobsToStop"]

    async def ping(self, **params: str) -> int:
        async with self.session.get(self.url("RUNPOD_WEBHOOK_PING"), params=params, headers=self.headers) as response:
            return response.status

    async def serve(self, answer: Callable[["Worker", dict[str, Any]], Awaitable[None]]) -> None:
        """Take and answer jobs until cancelled."""
        while True:
            for job in await self.take():
                await answer(self, job)


@contextlib.asynccontextmanager
async def connected(emulator: Emulator | EmulatorThread, worker_id: str = "worker-1") -> AsyncIterator[Worker]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(SOON_S)) as session:
        yield Worker(emulator.worker_env(worker_id), session)


@contextlib.contextmanager
def working(emulator: EmulatorThread, answer: Callable[[Worker, dict[str, Any]], Awaitable[None]]) -> Iterator[None]:
    """A worker in a thread."""
    started = threading.Event()
    handles: list[Any] = []

    async def run() -> None:
        async with connected(emulator) as worker:
            task = asyncio.ensure_future(worker.serve(answer))
            handles.extend((asyncio.get_running_loop(), task))
            started.set()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(SOON_S)
    try:
        yield
    finally:
        handles[0].call_soon_threadsafe(handles[1].cancel)
        thread.join()


async def echo(worker: Worker, job: dict[str, Any]) -> None:
    await worker.done(job["id"], {"output": job["input"]})


@pytest.fixture
def runpod(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The SDK; the stand-in spares its import a sleep of one second."""
    monkeypatch.setitem(sys.modules, "cpuinfo", SimpleNamespace(get_cpu_info=lambda: {"brand_raw": ""}))
    import runpod

    return runpod


@pytest.fixture
def thread() -> Iterator[EmulatorThread]:
    with EmulatorThread(long_poll_s=SOON_S, stream_poll_s=0.05) as emulator:
        yield emulator


@pytest.fixture
def endpoint(runpod: Any, thread: EmulatorThread, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The real client of `thread`; it polls with sleeps of one second, which pass at once here."""
    monkeypatch.setattr(runpod, "endpoint_url_base", thread.endpoint_url_base)
    monkeypatch.setattr(runpod.endpoint.runner, "time", SimpleNamespace(sleep=lambda seconds: None))
    endpoint = runpod.Endpoint("EP", api_key="emulator")
    yield endpoint
    endpoint.rp_client.rp_session.close()


class TestRealClient:
    def test_run_is_queued_and_answered(self, thread: EmulatorThread, endpoint: Any) -> None:
        job = endpoint.run({"text": "hi"})
        assert job.status() == "IN_QUEUE"
        with working(thread, echo):
            thread.wait(job.job_id, SOON_S)
        assert job.status() == "COMPLETED"
        assert job.output() == {"text": "hi"}

    def test_run_sync_returns_the_output(self, thread: EmulatorThread, endpoint: Any) -> None:
        with working(thread, echo):
            assert endpoint.run_sync({"text": "hi"}) == {"text": "hi"}

    def test_a_failed_job_shows_its_error(self, thread: EmulatorThread, endpoint: Any) -> None:
        async def fail(worker: Worker, job: dict[str, Any]) -> None:
            await worker.done(job["id"], {"error": "no"})

        with working(thread, fail):
            assert endpoint.run_sync({"text": "hi"}) is None
        (record,) = thread.jobs.values()
        assert (record.status, record.error) == ("FAILED", "no")
        assert endpoint.rp_client.get(f"EP/status/{record.id}")["error"] == "no"

    def test_stream_yields_the_chunks(self, thread: EmulatorThread, endpoint: Any) -> None:
        async def generate(worker: Worker, job: dict[str, Any]) -> None:
            for number in range(3):
                await worker.stream(job["id"], {"n": number})
            await worker.done(job["id"], {"output": []}, is_stream=True)

        job = endpoint.run({"text": "hi"})
        with working(thread, generate):
            assert list(job.stream()) == [{"n": 0}, {"n": 1}, {"n": 2}]
        assert job.output() == []  # RunPod makes no list of what was streamed: that is the worker's

    def test_progress_shows_in_the_status(self, thread: EmulatorThread, endpoint: Any) -> None:
        reported, go_on = threading.Event(), threading.Event()

        async def report(worker: Worker, job: dict[str, Any]) -> None:
            await worker.done(job["id"], {"status": "IN_PROGRESS", "output": "half"})
            reported.set()
            await asyncio.to_thread(go_on.wait, SOON_S)
            await echo(worker, job)

        with working(thread, report):
            job = endpoint.run({"text": "hi"})
            assert reported.wait(SOON_S)
            assert (job.status(), job.output()) == ("IN_PROGRESS", "half")
            go_on.set()
            assert thread.wait(job.job_id, SOON_S).progress == ["half"]

    def test_cancel_and_purge(self, thread: EmulatorThread, endpoint: Any) -> None:
        jobs = [endpoint.run({"n": number}) for number in range(3)]
        assert jobs[0].cancel()["status"] == "CANCELLED"
        assert endpoint.purge_queue() == {"removed": 2, "status": "completed"}
        assert [record.status for record in thread.jobs.values()] == ["CANCELLED"] * 3
        assert endpoint.health()["jobs"]["inQueue"] == 0

    def test_health_counts_jobs_and_workers(self, thread: EmulatorThread, endpoint: Any) -> None:
        with working(thread, echo):
            endpoint.run_sync({"text": "hi"})
        health = endpoint.health()
        assert health["jobs"] == {"completed": 1, "failed": 0, "inProgress": 0, "inQueue": 0, "retried": 0}
        assert health["workers"] == {
            "idle": 1,
            "initializing": 0,
            "ready": 1,
            "running": 0,
            "throttled": 0,
            "unhealthy": 0,
        }

    def test_a_wrong_key_is_unauthorized(self, endpoint: Any) -> None:
        endpoint.rp_client.headers["Authorization"] = "Bearer wrong"
        with pytest.raises(RuntimeError, match="401"):
            endpoint.health()

    async def test_the_async_client(self, runpod: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            monkeypatch.setattr(runpod, "endpoint_url_base", emulator.endpoint_url_base)
            endpoint = runpod.AsyncioEndpoint("EP", worker.session, api_key="emulator")
            job = await endpoint.run({"text": "hi"})
            assert await job.status() == "IN_QUEUE"
            await echo(worker, (await worker.take())[0])
            assert await job.output(timeout=SOON_S) == {"text": "hi"}
            assert (await (await endpoint.run({"n": 2})).cancel())["status"] == "CANCELLED"
            assert (await endpoint.health())["jobs"]["completed"] == 1
            assert (await endpoint.purge_queue())["removed"] == 0


class TestClientRoutes:
    """What the real clients do not ask for."""

    async def test_half_a_surrogate_pair_reaches_the_worker(self) -> None:
        """Which is to refuse it: it is JSON."""
        async with Emulator() as emulator, connected(emulator) as worker:
            headers = {"Authorization": "Bearer emulator"}
            async with worker.session.post(
                emulator.url + "/v2/EP/run", data=b'{"input": "\\ud83d"}', headers=headers
            ) as response:
                assert response.status == 200
            (job,) = await worker.take()
            assert job["input"] == "\ud83d"

    @staticmethod
    async def ask(emulator: Emulator, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(SOON_S)) as session,
            session.request(
                method,
                f"{emulator.endpoint_url_base}/EP/{path}",
                headers={"Authorization": "Bearer emulator"},
                **options,
            ) as response,
        ):
            return response.status, await response.json()

    async def test_runsync_answers_with_the_status_when_wait_is_over(self) -> None:
        async with Emulator() as emulator:
            status, body = await self.ask(emulator, "POST", "runsync?wait=5", json={"input": 1})
            assert (status, body["status"]) == (200, "IN_QUEUE")

    @pytest.mark.parametrize(
        ("output", "reply"),
        [([{"data": 1}], {"data": 1}), ({"data": 1}, {"data": 1}), ([], [])],
    )
    async def test_openai_routes_become_jobs(self, output: Any, reply: Any) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            asked = asyncio.ensure_future(self.ask(emulator, "POST", "openai/v1/embeddings", json={"input": "hi"}))
            (job,) = await worker.take()
            assert job["input"] == {"openai_route": "/v1/embeddings", "openai_input": {"input": "hi"}}
            await worker.done(job["id"], {"output": output})
            assert await asked == (200, reply)

    async def test_an_openai_route_without_body_that_fails(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            asked = asyncio.ensure_future(self.ask(emulator, "GET", "openai/v1/models"))
            (job,) = await worker.take()
            assert job["input"] == {"openai_route": "/v1/models", "openai_input": {}}
            await worker.done(job["id"], {"error": {"message": "no"}})
            assert await asked == (500, {"error": {"message": "no"}})

    @pytest.mark.parametrize(
        ("path", "data", "status", "words"),
        [
            ("run", b'{"input": "' + b"x" * 10 * 1024**2 + b'"}', 413, "10 MB"),
            ("runsync", b'{"input": "' + b"x" * 20 * 1024**2 + b'"}', 413, "20 MB"),
            ("run", b"{", 400, "not JSON"),
            ("run", b'{"input": NaN}', 400, "NaN"),
            ("run", b"[]", 400, "object"),
            ("run", b"{}", 400, "input"),
            ("run", b'{"input": 1, "policy": {"ttl": "1"}}', 400, "policy.ttl"),
            ("run", b'{"input": 1, "policy": 1}', 400, "policy"),
            ("runsync?wait=x", b'{"input": 1}', 400, "wait"),
            ("cancel/nobody", b"", 404, "nobody"),
            ("status/nobody", b"", 404, "nobody"),
            ("stream/nobody", b"", 404, "nobody"),
        ],
        ids=lambda value: value[:20].decode() if isinstance(value, bytes) else None,
    )
    async def test_what_it_refuses(self, path: str, data: bytes, status: int, words: str) -> None:
        async with Emulator() as emulator:
            got, body = await self.ask(emulator, "POST", path, data=io.BytesIO(data))
            assert got == status
            assert words in body["error"]
            assert not emulator.jobs

    async def test_runsync_takes_what_run_does_not(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            text = "x" * 12 * 1024**2
            asked = asyncio.ensure_future(
                self.ask(emulator, "POST", "runsync", data=io.BytesIO(json.dumps({"input": text}).encode()))
            )
            await echo(worker, (await worker.take())[0])
            assert (await asked)[1]["output"] == text


class TestWorkerRoutes:
    async def test_a_poll_that_finds_nothing_gets_204(self) -> None:
        async with Emulator(long_poll_s=0.01) as emulator, connected(emulator) as worker:
            assert await worker.take() == []
            assert await worker.take(4) == []
            assert await worker.stops() == []
            assert emulator.workers["worker-1"].takes == 2

    async def test_a_waiting_poll_is_woken_by_a_job(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            taking = asyncio.ensure_future(worker.take())
            await until(lambda: emulator.waiting_polls)
            record = emulator.submit({"text": "hé"}, webhook="http://127.0.0.1:1/", policy={"lowPriority": True})
            (job,) = await taking
            assert job == {
                "id": record.id,
                "input": {"text": "hé"},
                "webhook": "http://127.0.0.1:1/",
                "policy": {"lowPriority": True},
            }
            assert (record.status, record.worker_id, record.attempts) == ("IN_PROGRESS", "worker-1", 1)
            assert await worker.done(job["id"], {"output": None}) == 200
            assert (await emulator.wait(record)).output is None
            assert record.run_ms >= 0 and record.queue_ms >= 0

    async def test_jobs_leave_in_order_and_in_batches(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            for number in range(6):
                emulator.submit(number)
            assert [job["input"] for job in await worker.take()] == [0]
            assert [job["input"] for job in await worker.take(4)] == [1, 2, 3, 4]
            assert [job["input"] for job in await worker.take(4)] == [5]

    async def test_a_poll_whose_client_left_gets_no_job(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            _, writer = await asyncio.open_connection("127.0.0.1", int(emulator.url.rpartition(":")[2]))
            writer.write(b"GET /v2/EP/job-take/gone?gpu=x HTTP/1.1\r\nHost: x\r\nAuthorization: emulator\r\n\r\n")
            await until(lambda: emulator.waiting_polls)
            writer.close()
            await writer.wait_closed()
            await until(lambda: not emulator.waiting_polls)
            record = emulator.submit(1)
            assert (await worker.take())[0]["id"] == record.id
            assert record.attempts == 1

    def test_jobs_do_not_go_to_a_poll_that_is_woken_after_the_end_of_its_request(self) -> None:
        with EmulatorThread() as emulator:
            record = end_a_poll_in_the_instant_of(lambda running: running.submit(1), emulator, "job-take")
            assert (record.status, record.attempts) == ("IN_QUEUE", 0)

    def test_stop_signals_do_not_either(self) -> None:
        with EmulatorThread() as emulator:
            record = emulator.submit(1)
            request = urllib.request.Request(worker_url(emulator, "job-take"), headers={"Authorization": "emulator"})
            with urllib.request.urlopen(request) as response:
                assert json.load(response)["id"] == record.id
            end_a_poll_in_the_instant_of(lambda running: running.cancel(record), emulator, "job-stop")
            assert emulator.workers["leaving"].stops == [record.id]

    async def test_a_wake_that_reaches_a_cancelled_poll_goes_to_the_next(self) -> None:
        exchange = Exchange(long_poll_s=SOON_S)
        exchange.open()
        leaving = asyncio.ensure_future(exchange.take("leaving", 1))
        staying = asyncio.ensure_future(exchange.take("staying", 1))
        await asyncio.sleep(0)
        record = exchange.submit("job", {})  # wakes the first poll, which is cancelled before it can run
        leaving.cancel()
        assert await staying == [record]
        assert leaving.cancelled()

    async def test_each_waiting_poll_gets_a_job(self) -> None:
        async with Emulator() as emulator, connected(emulator, "a") as a, connected(emulator, "b") as b:
            polls = [asyncio.ensure_future(worker.take(8)) for worker in (a, b, a, b)]
            await until(lambda: emulator.waiting_polls == 4)
            for number in range(4):
                record = emulator.submit(number)
                await until(functools.partial(getattr, record, "attempts"))
            assert sorted(jobs[0]["input"] for jobs in await asyncio.gather(*polls)) == [0, 1, 2, 3]

    async def test_cancelling_reaches_the_stop_channel(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            record = emulator.submit(1)
            await worker.take()
            stopping = asyncio.ensure_future(worker.stops())
            await until(lambda: emulator.workers["worker-1"].jobs)
            emulator.cancel(record)
            assert await stopping == [record.id]
            assert record.status == "CANCELLED"
            assert await worker.done(record.id, {"output": 1}) == 200
            assert (record.status, record.output) == ("CANCELLED", None)

    async def test_policies_end_jobs(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            queued = emulator.submit(1, policy={"ttl": 10})
            await emulator.wait(queued)
            assert (queued.status, queued.attempts) == ("TIMED_OUT", 0)
            running = emulator.submit(2, policy={"executionTimeout": 10, "ttl": 60_000})
            await worker.take()
            assert await worker.stops() == [running.id]
            assert running.status == "TIMED_OUT"
            assert "executionTimeout of 10 ms" in running.error

    async def test_only_the_first_answer_of_the_holder_counts(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker, connected(emulator, "other") as other:
            record = emulator.submit(1)
            await worker.take()
            assert await other.done(record.id, {"output": "not mine"}) == 200
            assert record.status == "IN_PROGRESS"
            for body in ({"output": "first"}, {"output": "second"}, {"status": "IN_PROGRESS", "output": "late"}):
                assert await worker.done(record.id, body) == 200
            assert await worker.stream(record.id, "late") == 200
            assert (record.status, record.output, record.progress, record.chunks) == ("COMPLETED", "first", [], [])
            assert [post.accepted for post in record.posts] == [False, True, False, False]
            assert len(record.answers) == 3

    async def test_an_aggregate_is_kept_as_it_was_sent(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            record = emulator.submit(1)
            await worker.take()
            await worker.stream(record.id, "a")
            await worker.done(record.id, {"output": ["a", "b"]}, is_stream=True)
            assert (record.output, record.chunks, record.posts[0].is_stream) == (["a", "b"], ["a"], True)

    @pytest.mark.parametrize("body", [b"{", b"", b"[1]", b'{"output": NaN}', b'{"output": "\xff"}', b"[" * 100_000])
    async def test_a_malformed_answer_is_refused_and_remembered(self, body: bytes) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            record = emulator.submit(1)
            await worker.take()
            assert await worker.done(record.id, body) == 400
            assert (record.status, record.posts) == ("IN_PROGRESS", [])
            (rejection,) = emulator.rejected
            assert (rejection.worker_id, rejection.job_id) == ("worker-1", record.id)
            assert rejection.body == body[:1000]

    async def test_other_refusals_are_remembered(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            assert await worker.done("nobody", {"output": 1}) == 404
            assert await worker.done("nobody", b"x" * (20 * 1024**2 + 1)) == 413
            assert await worker.stream("nobody", "x" * 1024**2) == 413
            worker.headers["Authorization"] = "Bearer emulator"
            assert await worker.ping() == 401
            assert [rejection.job_id for rejection in emulator.rejected] == ["nobody", "nobody", "nobody", ""]
            assert emulator.rejected[2].reason == "the body is larger than 1 MB"

    async def test_pings_are_remembered_however_long(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            ids = ",".join(f"{number:036}-u1" for number in range(1000))
            assert await worker.ping(runpod_version="1", job_id=ids) == 200
            record = emulator.workers["worker-1"]
            assert record.pings[0] == {"runpod_version": "1", "job_id": ids}
            assert (record.unhealthy, record.first_take) == (None, None)
            await worker.ping(status="unhealthy", check="gpu", reason="none")
            assert record.unhealthy is not None
            assert record.ping_count == 2

    async def test_a_silent_worker_loses_its_jobs_in_order(self) -> None:
        async with (
            Emulator(worker_timeout_s=0.25) as emulator,
            connected(emulator, "silent") as silent,
            connected(emulator) as worker,
        ):
            records = [emulator.submit(number) for number in range(2)]
            await silent.take(2)
            await silent.stream(records[0].id, "lost")
            taken = await worker.take(2)
            assert [job["input"] for job in taken] == [0, 1]
            await asyncio.gather(*(echo(worker, job) for job in taken))
            await silent.done(records[0].id, {"output": "too late"})
            assert [(record.output, record.attempts, record.chunks) for record in records] == [(0, 2, []), (1, 2, [])]

    def test_a_worker_that_pings_keeps_its_jobs(self) -> None:
        store = JobStore(worker_timeout_s=10.0)
        record = store.submit("job", {}, None, now=0.0)
        store.take("worker-1", 1, now=0.0)
        store.pinged("worker-1", {}, now=9.0)
        assert store.next_deadline() == 19.0
        store.expire(now=18.9)
        assert record.status == "IN_PROGRESS"
        store.expire(now=19.0)
        assert (record.status, store.next_deadline(), store.requeued) == ("IN_QUEUE", None, 1)


class TestFaults:
    async def test_a_status_replaces_the_reply_as_often_as_asked(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            emulator.faults.add("ping", Fault(status=429, body="slow down", content_type="text/plain"), times=2)
            assert [await worker.ping() for _ in range(3)] == [429, 429, 200]
            assert (emulator.faults.struck["ping"], emulator.faults.pending("ping")) == (2, 0)
            emulator.faults.add("ping", Fault(status=500), times=None)
            assert [await worker.ping() for _ in range(3)] == [500, 500, 500]
            emulator.faults.clear()
            assert await worker.ping() == 200

    async def test_an_answer_that_is_lost_before_and_after_it_was_recorded(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            record = emulator.submit(1)
            await worker.take()
            emulator.faults.add("job-done", Fault(hang_up=True))
            emulator.faults.add("job-done", Fault(hang_up=True, hang_up_after="after"))
            with pytest.raises(aiohttp.ClientConnectionError):
                await worker.done(record.id, {"output": 1})
            assert record.posts == []
            with pytest.raises(aiohttp.ClientConnectionError):
                await worker.done(record.id, {"output": 1})
            assert record.status == "COMPLETED"
            assert await worker.done(record.id, {"output": 1}) == 200
            assert len(record.answers) == 2

    async def test_a_recorded_answer_that_is_refused(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            record = emulator.submit(1)
            await worker.take()
            emulator.faults.add("job-done", Fault(status=502, hang_up_after="after"))
            assert await worker.done(record.id, {"output": 1}) == 502
            assert record.status == "COMPLETED"

    async def test_a_hand_out_that_is_lost_strikes_the_poll_that_got_the_job(self) -> None:
        async with Emulator(long_poll_s=0.1) as emulator, connected(emulator) as worker:
            taking = asyncio.ensure_future(worker.take())
            await until(lambda: emulator.waiting_polls)
            emulator.faults.add("job-take", Fault(hang_up=True, hang_up_after="after"))
            record = emulator.submit(1)
            assert await taking == []  # aiohttp repeats a GET whose connection was closed, and does not tell
            assert (record.status, record.worker_id, emulator.workers["worker-1"].takes) == (
                "IN_PROGRESS",
                "worker-1",
                2,
            )

    async def test_a_delay_and_a_body(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            emulator.submit(1)
            emulator.faults.add("job-take", Fault(delay_s=0.01))
            assert len(await worker.take()) == 1
            emulator.faults.add("job-take", Fault(body=b"[]"))
            assert await worker.take(2) == []

    async def test_a_chooser_sees_every_request(self) -> None:
        async with Emulator() as emulator, connected(emulator) as worker:
            seen: list[str] = []

            def choose(route: str, request: aiohttp.web.Request) -> Fault | None:
                seen.append(f"{route} {request.match_info['worker']}")
                return Fault(status=503) if route == "ping" else None

            emulator.faults.choose = choose
            emulator.submit(1)
            assert await worker.ping() == 503
            assert len(await worker.take(2)) == 1
            assert seen == ["ping worker-1", "job-take worker-1"]

    def test_an_unknown_route_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"job-take-batch.*job-take, job-done"):
            Emulator().faults.add("job-take-batch", Fault())


class TestLifecycle:
    async def test_stopping_ends_what_waits(self) -> None:
        emulator = Emulator()
        async with connected(emulator) as worker:
            await emulator.start()
            worker.env = emulator.worker_env()
            record = emulator.submit(1)
            waiting = [asyncio.ensure_future(emulator.wait(record, 60.0)), asyncio.ensure_future(worker.stops())]
            await worker.take()
            await emulator.stop()
            assert isinstance((await asyncio.gather(*waiting, return_exceptions=True))[0], TimeoutError)

    async def test_finished_jobs_are_forgotten_oldest_first(self) -> None:
        ended: list[JobRecord] = []
        async with Emulator(keep_finished=2, on_end=ended.append) as emulator, connected(emulator) as worker:
            records = [emulator.submit(number) for number in range(4)]
            for job in await worker.take(4):
                await echo(worker, job)
            assert list(emulator.jobs) == [record.id for record in records[2:]]
            assert ended == records
            assert (await emulator.wait(records[0])).output == 0
            with pytest.raises(KeyError):
                await emulator.wait(records[0].id)

    async def test_what_submit_refuses(self) -> None:
        async with Emulator() as emulator:
            emulator.submit(1, job_id="mine")
            with pytest.raises(ValueError, match="mine"):
                emulator.submit(2, job_id="mine")
            with pytest.raises(TypeError):
                emulator.submit({1, 2})
            assert list(emulator.jobs) == ["mine"]

    def test_a_thread_passes_errors_on(self, thread: EmulatorThread) -> None:
        with (
            pytest.raises(OSError, match="address already in use"),
            EmulatorThread(port=int(thread.url.rpartition(":")[2])),
        ):
            pass
        with pytest.raises(RuntimeError, match="with EmulatorThread"):
            EmulatorThread().submit(1)
        with pytest.raises(TimeoutError):
            thread.wait(thread.submit(1), timeout_s=0.001)
        with pytest.raises(KeyError):
            thread.cancel("nobody")
        with pytest.raises(ValueError, match="1000"):
            thread.worker_env(ping_interval_ms=999)

    def test_a_thread_injects_faults(self, thread: EmulatorThread) -> None:
        thread.inject("job-done", Fault(status=500))
        codes: list[int] = []

        async def insist(worker: Worker, job: dict[str, Any]) -> None:
            while not codes or codes[-1] != 200:
                codes.append(await worker.done(job["id"], {"output": 1}))

        with working(thread, insist):
            record = thread.wait(thread.submit(1), SOON_S)
        assert (codes[0], len(record.answers)) == (500, 1)

    def test_the_command_serves_until_it_is_told_to_stop(self) -> None:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        assert parser.parse_args([]).host == "127.0.0.1"
        script = (
            "import argparse, sys; from benchmarks.emulator import add_arguments, main; p = argparse.ArgumentParser();"
            "add_arguments(p); sys.exit(main(p.parse_args()))"
        )
        command = [sys.executable, "-c", script, "--port", "0"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                env = {}
                while not (line := process.stdout.readline()).startswith("# id"):
                    if line.startswith("export "):
                        name, _, value = line.removeprefix("export ").strip().partition("=")
                        env[name] = value.strip("'")
                assert env["RUNPOD_WEBHOOK_GET_JOB"].endswith("/v2/EP/job-take/$ID?gpu=emulated")
                request = urllib.request.Request(
                    env["RUNPOD_ENDPOINT_BASE_URL"] + "/EP/run",
                    data=b'{"input": {}, "policy": {"ttl": 1}}',
                    headers={"Authorization": "Bearer emulator"},
                )
                with urllib.request.urlopen(request) as response:
                    job_id = json.load(response)["id"]
                assert process.stdout.readline().split()[:2] == [job_id, "TIMED_OUT"]
                process.send_signal(signal.SIGTERM)
                assert process.wait(SOON_S) == 0
            finally:
                process.kill()

    def test_the_command_names_a_port_that_is_taken(self, capsys: pytest.CaptureFixture[str]) -> None:
        from benchmarks.emulator import main

        parser = argparse.ArgumentParser()
        add_arguments(parser)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert main(parser.parse_args(["--port", str(port)])) == 1
        assert str(port) in capsys.readouterr().err


STOCK_WORKER = """
import sys, types
sys.modules["cpuinfo"] = types.SimpleNamespace(get_cpu_info=lambda: {"brand_raw": ""})
import runpod

async def handler(job):
    if job["input"] == "fail":
        raise ValueError("told to")
    runpod.serverless.progress_update(job, "on it")
    return {"echo": job["input"], "policy": job["policy"]}

if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
"""


def test_the_stock_sdk_loop_answers_jobs(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(STOCK_WORKER)
    with EmulatorThread(long_poll_s=0.2) as emulator:
        env = os.environ | emulator.worker_env() | {"HOME": str(tmp_path)}
        done = emulator.submit({"text": "hé"}, policy={"ttl": 60_000})
        failed = emulator.submit("fail")
        command = [sys.executable, "worker.py"]
        # Its own process group: a killed SDK worker leaves its ping process behind.
        with subprocess.Popen(command, cwd=tmp_path, env=env, start_new_session=True) as process:
            try:
                assert emulator.wait(done, 30.0).output == {"echo": {"text": "hé"}, "policy": {"ttl": 60_000}}
                assert "told to" in emulator.wait(failed, 30.0).error
                assert len(done.answers) == len(failed.answers) == 1
                assert emulator.workers["worker-1"].ping_count >= 1
                process.send_signal(signal.SIGTERM)
                assert process.wait(30.0) == 0
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        assert not emulator.rejected
