"""api-proxy against a real TLS server: what it sends, what it passes on, when it tries again."""

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from engine.batching.passage import Passage
from engine.batching.stats import Stats
from engine.config import Limits, Settings
from engine.errors import ConfigError
from engine.fetching.fetch import Network
from engine.tasks.api_proxy import ApiProxy
from handler.handler import Handler
from tests.tls_server import HOST, Answer, TlsServer, certificate, content, raw

NESTED: Any = []
for _ in range(5000):
    NESTED = [NESTED]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    running = TlsServer(certificate(tmp_path_factory.mktemp("tls")))
    yield running
    running.close()


class Proxy:
    """The task behind a handler; `pauses` are what it would have slept."""

    def __init__(self, server: TlsServer, network: Network | None = None, **settings: Any) -> None:
        self.pauses: list[float] = []
        self.server = server
        defaults = {"fetch_hosts": (server.host,), "upstream_url": server.url("/v1/"), "fetch_timeout_s": 2.0}
        task = ApiProxy(Limits(**{**defaults, **settings}), network or server.network(), self.pauses.append)
        self.handler = Handler(task, Passage(Stats()), dict)

    def ask(self, payload: Any) -> Any:
        self.server.seen.clear()
        return asyncio.run(self.handler.handle({"id": "1", "input": payload}))

    def on(self, path: str, *answers: Answer) -> None:
        """Answer requests for `path` in turn, the last for ever."""
        turns = list(answers)

        def answer(request: BaseHTTPRequestHandler) -> None:
            (turns.pop(0) if len(turns) > 1 else turns[0])(request)

        self.server.answers[path] = answer


@pytest.fixture
def proxy(server: TlsServer) -> Proxy:
    return Proxy(server, upstream_authorization="Bearer secret")


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    return content(json.dumps(value).encode(), status, Content_Type="application/json; charset=utf-8", **headers)


def test_a_request_and_its_answer(proxy: Proxy):
    proxy.on("/v1/items", as_json({"made": 1}))
    request = {"path": "/items", "method": "post", "query": {"page": 2, "q": "a b&c"}, "body": {"name": "ü"}}
    assert proxy.ask({"request": request}) == {"status": 200, "json": {"made": 1}}
    ((method, path, headers, body),) = proxy.server.seen
    assert (method, path) == ("POST", "/v1/items?page=2&q=a+b%26c")
    assert json.loads(body) == {"name": "ü"}
    assert headers["authorization"] == "Bearer secret"
    assert headers["content-type"] == "application/json"
    assert headers["host"] == proxy.server.host


@pytest.mark.parametrize("path", ["/a%20b", "/100%25", "/a%2520b", "/.../..a/a..", "/%C3%BC%F0", "/a;..b"])
def test_a_path_is_sent_as_it_is(proxy: Proxy, path: str):
    proxy.on(f"/v1{path}", as_json(path))
    assert proxy.ask({"request": {"path": path}}) == {"status": 200, "json": path}


def test_other_content_is_passed_on(proxy: Proxy):
    proxy.on("/v1/text", content("grüß".encode(), Content_Type="text/plain"))
    proxy.on("/v1/bytes", content(b"\x00\xff", Content_Type="image/png"))
    proxy.on("/v1/liar", content(b"{", Content_Type="application/json"))
    proxy.on("/v1/nan", content(b"NaN", Content_Type="application/json"))
    proxy.on("/v1/nothing", content(b"", 204))
    requests = [{"path": path} for path in ("/text", "/bytes", "/liar", "/nan", "/nothing")]
    assert proxy.ask({"requests": requests}) == [
        {"status": 200, "text": "grüß"},
        {"status": 200, "base64": "AP8="},
        {"status": 200, "base64": "ew=="},
        {"status": 200, "base64": "TmFO"},
        {"status": 204, "base64": ""},
    ]


def test_a_refusal_is_an_answer_and_not_tried_again(proxy: Proxy):
    proxy.on("/v1/none", as_json({"detail": "no such item"}, 404))
    assert proxy.ask({"request": {"path": "/none"}}) == {"status": 404, "json": {"detail": "no such item"}}
    assert (len(proxy.server.seen), proxy.pauses) == (1, [])


HALVES = [b'{"a":"\\ud800x"}', b'{"\\udc00":1}', b'["\xed\xa0\x80"]', b'["\\ud800", %s]' % b",".join([b"[1]"] * 2000)]
DEEP = [b"[" * depth + b"]" * depth for depth in (251, 700, 980, 5000)]


@pytest.mark.parametrize("body", [b"[NaN]", b"[1e999]", *DEEP, b'{"a":' * 251 + b"1" + b"}" * 251, *HALVES])
def test_json_that_cannot_be_passed_on_goes_as_bytes(proxy: Proxy, body: bytes):
    proxy.on("/v1/odd", content(body, Content_Type="application/json"))
    said = asyncio.run(proxy.handler.body({"id": "1", "input": {"request": {"path": "/odd"}}}))
    assert base64.b64decode(json.loads(said)["output"]["base64"]) == body


@pytest.mark.parametrize("body", [b"[" * 250 + b"]" * 250, b'{"a":' * 250 + b"1" + b"}" * 250])
def test_json_may_be_nested(proxy: Proxy, body: bytes):
    proxy.on("/v1/nested", content(body, Content_Type="application/json"))
    requests = [{"path": "/nested"}] * 2
    said = asyncio.run(proxy.handler.body({"id": "1", "input": {"requests": requests}}))
    assert [answer["json"] for answer in json.loads(said)["output"]] == [json.loads(body)] * 2


@pytest.mark.parametrize("failure", [content(b"", 429), content(b"", 500), content(b"", 503), raw(b""), raw(b"\0")])
def test_what_may_pass_is_tried_again(proxy: Proxy, failure: Answer):
    proxy.on("/v1/busy", failure, failure, as_json("done"))
    assert proxy.ask({"request": {"path": "/busy"}}) == {"status": 200, "json": "done"}
    assert len(proxy.server.seen) == 3
    assert len({headers["idempotency-key"] for _, _, headers, _ in proxy.server.seen}) == 1
    first, second = proxy.pauses
    assert 0.125 <= first <= 0.375
    assert 0.25 <= second <= 0.75


def test_the_service_says_how_long_to_wait(proxy: Proxy):
    proxy.on("/v1/busy", content(b"", 429, Retry_After="2"), content(b"", 503, Retry_After="3600"), as_json("done"))
    assert proxy.ask({"request": {"path": "/busy"}})["json"] == "done"
    assert proxy.pauses == [2.0, 8.0]


def test_after_the_last_attempt_the_job_may_be_sent_again(server: TlsServer):
    proxy = Proxy(server, upstream_attempts=2)
    proxy.on("/v1/down", content(b"", 502))
    error = proxy.ask({"request": {"path": "/down"}})["error"]
    assert error == "unreachable, please retry: the service answered with status 502, 2 times"
    proxy.on("/v1/cut", raw(b""))
    error = proxy.ask({"request": {"path": "/cut"}})["error"]
    assert error.startswith(f"unreachable, please retry: the connection to {HOST} failed")
    assert "authorization" not in server.seen[0][2]


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ("/items", "`request` must be an object, got a string"),
        ({}, "`request.path` must be a string, got null"),
        ({"path": "items"}, "`request.path` must begin with /"),
        ({"path": "@evil.test/"}, "`request.path` must begin with /"),
        ({"path": "/../admin"}, "hold no ?, # or .."),
        ({"path": "/%2e%2E/admin"}, "hold no ?, # or .."),
        ({"path": "/.\t./admin"}, "hold no ?, # or .."),  # a URL parser takes the tab out
        ({"path": "/..;a/admin"}, "hold no ?, # or .."),
        ({"path": "/..%5cadmin"}, "hold no ?, # or .."),
        ({"path": "/%252e%252e/admin"}, "hold no ?, # or .."),  # some unquote it twice
        ({"path": "/%25252e%25252e/admin"}, "hold no ?, # or .."),
        ({"path": f"/%{'25' * 9}2e%{'25' * 9}2e/admin"}, "hold no ?, # or .."),
        ({"path": "/..%252fadmin"}, "hold no ?, # or .."),
        ({"path": "/..%00/admin"}, "hold no ?, # or .."),  # to some the segment ends there
        ({"path": "/.%09./admin"}, "hold no ?, # or .."),
        ({"path": "/.%7f./admin"}, "hold no ?, # or .."),
        ({"path": "/..%20/admin"}, "hold no ?, # or .."),
        ({"path": "/a%2500b"}, "hold no ?, # or .."),
        ({"path": "/\ud800"}, "half a surrogate pair"),
        ({"path": "/a", "query": {"a": "\ud800"}}, "half a surrogate pair"),
        ({"path": "/a", "body": NESTED}, "`request.body` holds NaN or infinity, or is nested too deeply"),
        ({"path": "/a?b=c"}, "parameters go into `query`"),
        ({"path": "/a", "method": "TRACE"}, "`method` must be one of GET, POST, PUT, PATCH, DELETE, got TRACE"),
        ({"path": "/a", "query": []}, "`request.query`"),
        ({"path": "/a", "query": {"a": [1]}}, "`request.query` must hold strings and numbers only"),
        ({"path": "/a", "query": {"a": True}}, "`request.query` must hold strings and numbers only"),
        ({"path": "/a", "body": {"a": float("nan")}}, "`request.body` holds NaN or infinity"),
        ({"path": "/a", "url": "https://evil.test"}, "unknown field `url`"),
        ({"path": "/a", "headers": {"Host": "evil.test"}}, "unknown field `headers`"),
    ],
)
def test_what_is_wrong_gets_a_sentence_and_no_request(proxy: Proxy, request_: Any, sentence: str):
    error = proxy.ask({"request": request_})["error"]
    assert error.startswith("invalid input: ")
    assert sentence in error
    assert proxy.server.seen == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "api-proxy needs UPSTREAM_URL"),
        ({"UPSTREAM_URL": "https://api.test/"}, "does not fetch URLs (its FETCH_HOSTS is empty)"),
        ({"UPSTREAM_URL": "http://api.test/", "FETCH_HOSTS": "api.test"}, "only https URLs are fetched, got http"),
        ({"UPSTREAM_URL": "https://api.test/", "FETCH_HOSTS": "b.test"}, "api.test is not among the hosts"),
        (
            {"UPSTREAM_URL": "https://me:hunter2@api.test/?key=hunter2", "FETCH_HOSTS": "api.test"},
            "UPSTREAM_URL='https://***@api.test/?***' cannot be called: a URL with a user name or password",
        ),
        (
            {"UPSTREAM_URL": "https://api.test/", "FETCH_HOSTS": "api.test", "UPSTREAM_AUTHORIZATION": "a\nb: c"},
            "UPSTREAM_AUTHORIZATION holds characters that a header cannot",
        ),
    ],
)
def test_settings_that_cannot_work_stop_the_boot(settings: dict[str, str], sentence: str):
    with pytest.raises(ConfigError) as error:
        ApiProxy(Settings.from_environ(settings))
    assert sentence in str(error.value)


def test_the_secret_is_not_printed():
    assert "hunter2" not in repr(Settings.from_environ({"UPSTREAM_AUTHORIZATION": "Bearer hunter2"}))


def test_nothing_private_is_reached(server: TlsServer, tmp_path: Path):
    """The same rules as for media: the service must be at a public address."""
    task = ApiProxy(Limits(fetch_hosts=("localhost",), upstream_url="https://localhost/", upstream_attempts=1))
    reply = asyncio.run(Handler(task, Passage(Stats()), dict).handle({"id": "1", "input": {"request": {"path": "/"}}}))
    assert reply["error"] == "worker fault: UPSTREAM_URL: localhost is not at a public address"


def test_a_service_that_is_not_there_or_not_itself_is_not_the_callers_fault(server: TlsServer):
    """Whatever path is asked for, and not what may be otherwise in the next attempt."""

    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    known = server.network()
    authority = f"wrong.test:{server.port}"
    for network, why in (
        (replace(known, resolve=unknown), "there is no host wrong.test"),
        (replace(known, is_allowed=lambda address: False), "wrong.test is not at a public address"),
        (known, "the certificate of wrong.test cannot be verified: "),
    ):
        proxy = Proxy(server, network, fetch_hosts=(authority,), upstream_url=f"https://{authority}/")
        said = proxy.ask({"request": {"path": "/"}})["error"]
        assert said.startswith(f"worker fault: UPSTREAM_URL: {why}")
        assert proxy.pauses == []


def test_an_answer_that_cannot_be_passed_on_is_one_of_the_path(server: TlsServer):
    proxy = Proxy(server, max_media_bytes=1000)
    proxy.on("/v1/large", content(b"x" * 1001))
    assert proxy.ask({"request": {"path": "/large"}})["error"].startswith("invalid input: the content at ")
    proxy.on("/v1/file.gz", content(b"x", Content_Encoding="gzip"))
    said = proxy.ask({"request": {"path": "/file.gz"}})["error"]
    assert said == f"invalid input: {HOST} sent compressed content (gzip), asked for was plain"


@pytest.mark.parametrize("answer", [as_json({}), as_json({}, status=503)], ids=["the next request", "the next attempt"])
async def test_a_job_that_was_stopped_sends_nothing_further(server: TlsServer, answer: Answer):
    proxy = Proxy(server)
    asked, stopped = threading.Event(), threading.Event()

    def when_stopped(request: BaseHTTPRequestHandler) -> None:
        asked.set()
        stopped.wait(10)
        answer(request)

    proxy.on("/v1/items", when_stopped)
    server.seen.clear()
    job = {"id": "1", "input": {"requests": [{"path": "/items", "method": "POST"}] * 5}}
    running = asyncio.ensure_future(proxy.handler.handle(job))
    await asyncio.to_thread(asked.wait, 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    stopped.set()
    assert proxy.handler._waiting is not None
    await asyncio.to_thread(proxy.handler._waiting.shutdown)  # its threads have ended
    assert len(server.seen) == 1


async def test_a_stream_that_failed_sends_nothing_further(server: TlsServer):
    proxy = Proxy(server, max_media_bytes=1000)
    together, failed = threading.Barrier(4), threading.Event()

    def too_large(request: BaseHTTPRequestHandler) -> None:
        together.wait(10)
        as_json("x" * 2000)(request)

    def busy(request: BaseHTTPRequestHandler) -> None:
        together.wait(10)
        failed.wait(10)
        as_json({}, status=503)(request)

    proxy.on("/v1/large", too_large)
    proxy.on("/v1/busy", busy)
    server.seen.clear()
    requests = [{"path": path, "method": "POST"} for path in ("/large", *["/busy"] * 7)]
    sent: list[bytes] = []

    async def keep(body: bytes) -> None:
        sent.append(body)

    said = await proxy.handler.body({"id": "1", "input": {"requests": requests, "stream": True}}, keep)
    assert b"is over the limit of 1000 bytes" in said
    failed.set()
    assert proxy.handler._waiting is not None
    await asyncio.to_thread(proxy.handler._waiting.shutdown)  # its threads have ended
    assert sorted(path for _, path, _, _ in server.seen) == ["/v1/busy"] * 3 + ["/v1/large"]
    assert sent == []


async def test_a_stream_sends_each_request_once_however_large_the_answers_are(proxy: Proxy):
    proxy.on("/v1/items", as_json("x" * 600_000))
    proxy.server.seen.clear()
    bodies: list[bytes] = []

    async def keep(body: bytes) -> None:
        bodies.append(body)

    requests = [{"path": "/items", "method": "POST", "body": number} for number in range(5)]
    await proxy.handler.body({"id": "1", "input": {"requests": requests, "stream": True}}, keep)
    assert sorted(body for _, _, _, body in proxy.server.seen) == [b"0", b"1", b"2", b"3", b"4"]
    assert len(bodies) == 5


def test_the_answers_of_a_job_are_bounded_together(server: TlsServer):
    proxy = Proxy(server, max_fetch_bytes=20)
    proxy.on("/v1/items", as_json({"made": 1}))
    said = proxy.ask({"requests": [{"path": "/items"}] * 9})
    assert said == {
        "error": "invalid input: `requests[2]`: the fetches before it brought 22 bytes, allowed in one job are 20 "
        "(MAX_FETCH_BYTES); split the job"
    }
    assert len(server.seen) == 2
