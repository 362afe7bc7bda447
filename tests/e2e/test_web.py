"""`WORKER_LOOP=http python -m handler`: the worker of a load-balancing endpoint, as RunPod and clients ask it."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import requests

from engine.config import Settings
from tests.bundles import write_small_bundle
from tests.ports import held_port
from tests.processes import wait_until_dead


class Served:
    """A worker's process and its address."""

    def __init__(
        self, bundle: Path, port: int, command: Sequence[str] = (sys.executable, "-m", "handler"), **env: str
    ) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "BUNDLE": str(bundle), "WORKER_LOOP": "http", "PORT": str(self.port), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ping(self, port: int | None = None, path: str = "/ping") -> int:
        """The status; 0 where nobody listens."""
        with suppress(requests.ConnectionError):
            return requests.get(f"http://127.0.0.1:{port or self.port}{path}", timeout=10).status_code
        return 0

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while self.ping() != 200:
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ask(self, payload: Any, path: str = "/runsync") -> requests.Response:
        return requests.post(self.url + path, json=payload, timeout=60)

    def engine_pid(self) -> int:
        return int(requests.get(self.url + "/health", timeout=10).json()["engine_pid"])

    def end(self) -> tuple[int, str]:
        """The exit code of a worker that ends by itself, or was told to, and what it printed."""
        printed = self.process.communicate(timeout=60)[0]
        return self.process.returncode, printed


@contextmanager
def served(bundle: Path, *, ready: bool = True, **options: Any) -> Iterator[Served]:
    with held_port() as port:
        worker = Served(bundle, port, **options)
        try:
            if ready:
                worker.wait_until_ready()
            yield worker
        finally:
            if worker.process.poll() is None:
                worker.process.kill()
            worker.process.communicate()


def holds_connections(pid: int) -> bool:
    return any(one.status == psutil.CONN_ESTABLISHED for one in psutil.Process(pid).net_connections("tcp"))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(write_small_bundle(tmp_path_factory.mktemp("web") / "bundle"), MAX_CONCURRENCY="2") as running:
        yield running


def test_a_job_is_answered_as_by_a_queue_endpoint(worker: Served):
    reply = worker.ask({"input": {"text": "the fox", "dimensions": 2}})
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, "application/json")
    found = reply.json()
    assert set(found) == {"id", "status", "output"}
    assert found["status"] == "COMPLETED"
    assert len(found["output"]["embedding"]) == 2


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (
            b"{",
            400,
            "invalid input: the body is not JSON (unexpected end of data: line 1 column 2 (char 1)); send a job,",
        ),
        (b"[]", 400, 'invalid input: the body is not an object; send a job, {"input": {...}}'),
        (b"{}", 400, "invalid input: the job has no `input`"),
        (b'{"input": null}', 400, "invalid input: the job has no `input`"),
        (b'{"input": {"wrong": 1}}', 400, "invalid input: unknown field `wrong`"),
        (
            b'{"input": {"texts": [], "stream": true}}',
            400,
            f"invalid input: `texts` must hold 1 to {Settings().max_items} strings, got 0",
        ),
        (
            b'{"input": ' + b"[" * 3000 + b"]" * 3000 + b"}",
            400,
            "invalid input: the body is not JSON (depth limit exceeded",
        ),
        (b" " * (30 * 1024 * 1024 + 1), 413, "invalid input: the body has more than 30 MB; send less at once"),
    ],
    ids=["half", "list", "empty", "null", "refused", "refused-stream", "deep", "large"],
)
def test_what_cannot_be_answered_says_whose_fault_it_is(worker: Served, body: bytes, status: int, sentence: str):
    reply = requests.post(worker.url + "/runsync", data=body, timeout=60)
    assert reply.status_code == status
    found = reply.json()
    assert found["status"] == "FAILED"
    assert found["error"].startswith(sentence)


def test_what_is_compressed_is_refused_and_nobody_looks_into_it(worker: Served):
    connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=60)
    connection.connect()
    asked = connection.sock
    connection.request("POST", "/runsync", b"this is no gzip", {"Content-Encoding": "gzip"})
    reply = connection.getresponse()
    assert reply.status == 415
    assert json.load(reply)["error"].startswith("invalid input: the body is compressed (gzip); send it as it is")
    connection.request("GET", "/ping")
    assert connection.getresponse().status == 200
    assert connection.sock is asked
    connection.close()


def test_openai_clients_find_what_they_expect(worker: Served):
    for base in ("/v1", "/openai/v1"):
        with openai.OpenAI(base_url=worker.url + base, api_key="any", max_retries=0) as client:
            found = client.embeddings.create(model="m", input=["the fox", "the dog"])
            assert [len(one.embedding) for one in found.data] == [8, 8]
            plain = client.embeddings.create(model="m", input=["the fox", "the dog"], encoding_format="float")
            for one, other in zip(found.data, plain.data, strict=True):  # the client asks for base64 by itself
                assert one.embedding == pytest.approx(other.embedding)
            assert client.models.list().data[0].object == "model"
            with pytest.raises(
                openai.BadRequestError, match="invalid input: `dimensions` must be a whole number from 1"
            ) as e:
                client.embeddings.create(model="m", input="the fox", dimensions=99)
            assert e.value.type == "invalid_request_error"
            with pytest.raises(
                openai.BadRequestError,
                match="the path, or `openai_route`, must be /v1/embeddings or /v1/models, got /v1/x",
            ):
                client.post("/x", body={}, cast_to=object)


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b" " * (30 * 1024 * 1024 + 1), 413)])
def test_openai_clients_read_errors_in_their_form(worker: Served, body: bytes, status: int):
    reply = requests.post(worker.url + "/v1/embeddings", data=body, timeout=60)
    assert reply.status_code == status
    assert reply.json()["error"]["message"].startswith("invalid input: the body ")


def test_a_streamed_job_is_a_line_for_each_part(worker: Served):
    texts = [f"fox {index}" for index in range(150)]
    with requests.post(worker.url + "/runsync", json={"input": {"texts": texts, "stream": True}}, stream=True) as reply:
        assert (reply.status_code, reply.headers["Content-Type"]) == (200, "application/x-ndjson")
        parts = [json.loads(line)["output"]["embeddings"] for line in reply.iter_lines()]
    whole = worker.ask({"input": {"texts": texts}}).json()["output"]["embeddings"]
    assert len(parts) == 3
    assert [vector for part in parts for vector in part] == whole


def test_more_requests_than_run_at_once_wait_their_turn(worker: Served):
    with ThreadPoolExecutor(20) as clients:
        replies = list(clients.map(lambda index: worker.ask({"input": {"text": f"fox {index}"}}), range(60)))
    assert [reply.status_code for reply in replies] == [200] * 60


def test_health_is_that_of_both_processes(worker: Served):
    report = requests.get(worker.url + "/health", timeout=10).json()
    assert report["pid"] == worker.process.pid
    assert report["engine"] == "onnxruntime-cpu"
    assert report["jobs_running"] == 0
    assert set(report["memory_mb"]) == {"front", "engine"}
    changing = {"boot_ms", "lanes", "memory_mb", "pid", "uptime_s"}
    assert report == worker.ask({"input": {"health": True}}).json()["output"] | {
        name: report[name] for name in set(report) & changing
    }


def test_other_paths_and_methods_are_refused(worker: Served):
    assert requests.get(worker.url + "/other", timeout=10).status_code == 404
    assert requests.get(worker.url + "/runsync", timeout=10).status_code == 405


def test_a_worker_that_starts_says_so(tmp_path: Path):
    """On both ports; its bundle comes from a server that never answers."""
    with held_port() as port_health, socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/bundle.tar"
        source = {"BUNDLE_URL": url, "BUNDLE_SHA256": "0" * 64, "BUNDLE_CACHE": str(tmp_path)}
        with served(tmp_path, ready=False, PORT_HEALTH=str(port_health), **source) as starting:
            while (status := starting.ping(port_health)) == 0:
                assert starting.process.poll() is None, starting.end()
                time.sleep(0.02)
            assert (status, starting.ping()) == (204, 204)
            reply = starting.ask({"input": {"text": "a"}})
            assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
            assert reply.json()["error"] == "overloaded, please retry: the worker is starting"
            assert requests.get(starting.url + "/health", timeout=10).status_code == 503
            starting.process.terminate()
            assert starting.end()[0] == 0


@pytest.mark.parametrize("path", ["/healthz", "status/ready", "/health"])
def test_the_balancer_asks_where_it_was_told_to(small_bundle: Path, path: str):
    """On both ports, from the start to the end, and at /ping as well; also where the report would be."""
    asked = "/" + path.removeprefix("/")
    with held_port() as port_health:
        options = {"PORT_HEALTH": str(port_health), "HEALTH_CHECK_PATH": path}
        with served(small_bundle, ready=False, **options) as running:
            while (status := running.ping(path=asked)) in (0, 204):
                assert running.process.poll() is None, running.end()
                time.sleep(0.02)
            assert status == 200
            for port in (running.port, port_health):
                assert {running.ping(port, one) for one in (asked, "/ping")} == {200}
            assert "output" in running.ask({"input": {"health": True}}).json()
            assert running.ask({"input": {"text": "a"}}).status_code == 200
            assert running.ping(path="/healthy") == 404


@pytest.mark.parametrize(("drain", "status"), [("20", 200), ("0.2", 503)])
def test_sigterm_answers_what_was_taken(small_bundle: Path, drain: str, status: int):
    with served(small_bundle, DRAIN_TIMEOUT_S=drain) as running, ThreadPoolExecutor(3) as clients:
        engine = running.engine_pid()
        os.kill(engine, signal.SIGSTOP)
        asked = [clients.submit(running.ask, {"input": {"text": "a", "stream": stream}}) for stream in (False, True)]
        asked.append(clients.submit(running.ask, {"input": "a", "model": "m"}, "/v1/embeddings"))
        time.sleep(0.5)
        running.process.terminate()
        while running.ping() != 503:
            time.sleep(0.02)
        refused = running.ask({"input": {"text": "a"}})  # on a new connection, while it drains
        assert (refused.status_code, refused.headers["Connection"]) == (503, "close")
        if status == 200:
            os.kill(engine, signal.SIGCONT)
        replies = [one.result() for one in asked]
        os.kill(engine, signal.SIGCONT)
        code, printed = running.end()
    assert [reply.status_code for reply in replies] == [status] * 3
    assert status == 200 or all("overloaded, please retry: the worker is shutting down" in r.text for r in replies)
    assert code == 0, printed
    wait_until_dead(engine)


def test_a_request_that_takes_too_long_fails(small_bundle: Path):
    with served(small_bundle, JOB_TIMEOUT_S="1") as running:
        engine = running.engine_pid()
        os.kill(engine, signal.SIGSTOP)
        for stream in (False, True):
            late = running.ask({"input": {"text": "a", "stream": stream}})
            assert late.status_code == 504
            assert late.json()["error"] == "worker fault: the job took longer than 1.0 s (JOB_TIMEOUT_S)"
        os.kill(engine, signal.SIGCONT)
        assert running.ask({"input": {"text": "a"}}).status_code == 200


def test_an_engine_that_hangs_while_the_worker_stops_is_noticed(small_bundle: Path):
    with served(small_bundle, ENGINE_TIMEOUT_S="1") as running, ThreadPoolExecutor(1) as client:
        engine = running.engine_pid()
        os.kill(engine, signal.SIGSTOP)
        asked = client.submit(running.ask, {"input": {"text": "a"}})
        time.sleep(0.3)
        running.process.terminate()
        reply = asked.result()
        os.kill(engine, signal.SIGCONT)
        code, printed = running.end()
    assert reply.status_code == 500
    assert reply.json()["error"] == "worker fault: the engine did not answer within 1 s (ENGINE_TIMEOUT_S)"
    assert code == 1, printed


def test_bytes_that_are_no_http_are_a_line_of_the_log(small_bundle: Path):
    with served(small_bundle) as running:
        for request in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\nX: %s\r\n\r\n" % (b"a" * 9000)):
            with socket.create_connection(("127.0.0.1", running.port), 20) as client:
                client.sendall(request)
                assert b" 400 " in client.recv(4096)
        running.process.terminate()
        code, printed = running.end()
    assert code == 0
    assert "Traceback" not in printed
    assert printed.count("Error handling request from 127.0.0.1: ") == 2


def test_more_clients_than_it_needs_files_for(small_bundle: Path):
    """Connections that do nothing hold files; they are not to keep RunPod's ping out."""
    limit = f"ulimit -S -n 64; exec {sys.executable} -m handler"
    with served(small_bundle, command=["bash", "-c", limit], MAX_CONCURRENCY="2") as running, ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", running.port), 20))
        assert running.ping() == 200
        assert running.ask({"input": {"text": "a"}}).status_code == 200


def test_the_death_of_the_engine_is_told_and_ends_the_worker(small_bundle: Path):
    with served(small_bundle) as running, ThreadPoolExecutor(1) as client:
        engine = running.engine_pid()
        os.kill(engine, signal.SIGSTOP)
        asked = client.submit(running.ask, {"input": {"text": "a"}})
        time.sleep(0.3)
        os.kill(engine, signal.SIGKILL)
        reply = asked.result()
        code, printed = running.end()
    assert reply.status_code == 500
    assert reply.json()["error"] == "worker fault: the engine's process ended unexpectedly"
    assert code == 1
    assert "no more requests are taken and the worker exits" in printed


ASKS_FOR_A_FRESH_ONE = """
import sys
from handler import handler
from handler.__main__ import main

make = handler.body_of_json
handler.body_of_json = lambda reply: make({**reply, "refresh_worker": True})
sys.exit(main())
"""


def test_a_worker_whose_answer_asks_for_a_fresh_one_ends_when_it_is_sent(small_bundle: Path):
    with served(small_bundle, command=(sys.executable, "-c", ASKS_FOR_A_FRESH_ONE)) as running:
        reply = running.ask({"input": {"text": "a", "dimensions": 1}})
        code, printed = running.end()
    assert (reply.status_code, set(reply.json())) == (200, {"id", "status", "output"})
    assert code == 0, printed
    assert "an answer asks for a fresh worker (refresh_worker)" in printed


def test_a_client_that_goes_takes_its_work_with_it(small_bundle: Path):
    with served(small_bundle, MAX_CONCURRENCY="1") as running:
        engine = running.engine_pid()
        os.kill(engine, signal.SIGSTOP)
        with pytest.raises(requests.ReadTimeout):
            requests.post(running.url + "/runsync", json={"input": {"text": "a"}}, timeout=0.3)
        gone = time.monotonic()
        while time.monotonic() < gone + 30 and holds_connections(running.process.pid):
            time.sleep(0.02)
        time.sleep(0.2)  # the cancellation follows the end of the connection
        os.kill(engine, signal.SIGCONT)
        assert running.ask({"input": {"text": "b"}}).status_code == 200  # there is room again
        report = requests.get(running.url + "/health", timeout=10).json()
        assert (report["jobs_running"], report["jobs_done"]) == (0, 1)


@pytest.mark.parametrize("name", ["PORT", "PORT_HEALTH"])
def test_a_port_that_is_taken_is_named(small_bundle: Path, name: str):
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        with served(small_bundle, ready=False, **{name: port}) as refused:
            code, printed = refused.end()
    assert code == 1
    assert (
        f"cannot start: {name}={port}: the worker cannot listen on that port (another process listens there); set "
        f"{name} to a free one from 1024 on, and expose that one" in printed
    )
    assert "Traceback" not in printed
