"""What a URL in a job can and cannot reach, against a real TLS server."""

import asyncio
import base64
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.fetching.fetch
from engine.batching.passage import Passage
from engine.batching.stats import Stats
from engine.config import Limits
from engine.errors import InvalidInput, Overloaded, Unreachable
from engine.fetching.fetch import INTERNET, Network, check_url, fetch
from engine.fetching.spent import Spent
from engine.images.examples import LANDSCAPE
from engine.images.task import ImageTask
from engine.tasks.budget import OF_PROCESS, Share
from engine.tasks.image_transform import ImageTransform
from engine.tasks.media import bytes_of, each_bytes_of
from handler.handler import Handler
from tests.tls_server import HOST, LOOPBACK, TlsServer, certificate, content, endless, raw, silent_server

BODY = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    running = TlsServer(certificate(tmp_path_factory.mktemp("tls")))
    head = b"HTTP/1.1 200 OK\r\n"
    running.answers = {
        "/": content(BODY),
        "/empty": content(b""),
        "/error": content(b"", 503),
        "/slow": content(b"", 408),
        "/early": content(b"", 425),
        "/often": content(b"", 429),
        "/gone": content(b"", 410),
        "/gzip": content(BODY, Content_Encoding="gzip"),
        "/gzip-after-upload": content(BODY, Content_Encoding="aws-chunked,gzip"),
        "/no-encoding": content(BODY, Content_Encoding=""),
        "/of-an-upload": content(BODY, Content_Encoding="aws-chunked"),
        "/plain-twice": content(BODY, Content_Encoding="identity, Identity"),
        "/promise": endless(head + b"Content-Length: 99999999\r\n\r\n", b"", 0.02),
        "/flood": endless(head + b"\r\n", BODY, 0),
        "/chunks": raw(head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        "/cut-chunks": raw(head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel"),
        "/minus-one": endless(head + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", BODY, 0),
        "/minus-five": raw(head + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n"),
        "/cut": raw(head + b"Content-Length: 100\r\n\r\nhello"),
        "/drip": endless(head + b"Content-Length: 5000\r\n\r\n", b"x", 0.02),
        "/drip-header": endless(head, b"X-A: b\r\n", 0.02),
        "/no-http": raw(b"\x00\x01\x02 hello\r\n"),
        "/once": content(b"", 302, Location="/?a=b"),
        "/to-umlaut": raw(
            b"HTTP/1.1 302 Found\r\nLocation: " + "/?grün=a b%20c".encode() + b"\r\nContent-Length: 0\r\n\r\n"
        ),
        "/coded-chunks": raw(head + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        "/hints": raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2 + head + b"Content-Length: 5\r\n\r\nhello"),
        "/hints-alone": endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.02),
        "/loop": content(b"", 307, Location="/loop"),
        "/nowhere": content(b"", 302),
        "/to-http": content(b"", 301, Location=f"http://{HOST}/"),
        "/to-metadata": content(b"", 302, Location="https://169.254.169.254/latest/meta-data"),
        "/to-other": content(b"", 302, Location="https://other.test/"),
        "/to-nothing": content(b"", 302, Location="https://[::1"),
        "/to-file": content(b"", 302, Location="file:///etc/passwd"),
    }
    yield running
    running.close()


@pytest.fixture
def limits(server: TlsServer) -> Limits:
    return Limits(fetch_hosts=(server.host,), fetch_timeout_s=5.0, max_media_bytes=20_000)


def test_content_arrives(server: TlsServer, limits: Limits):
    assert fetch(server.url(), limits, server.network()) == BODY
    assert fetch(server.url("/chunks"), limits, server.network()) == b"hello"
    assert fetch(server.url("/hints"), limits, server.network()) == b"hello"
    assert fetch(server.url("/once"), limits, server.network()) == BODY
    method, path, headers, _ = server.seen[-1]
    assert (method, path, headers["host"]) == ("GET", "/?a=b", server.host)
    assert "authorization" not in headers


@pytest.mark.parametrize("path", ["/no-encoding", "/of-an-upload", "/plain-twice"])
def test_an_encoding_that_changes_nothing_is_none(server: TlsServer, limits: Limits, path: str):
    assert fetch(server.url(path), limits, server.network()) == BODY


def test_content_of_exactly_the_allowed_size_arrives(server: TlsServer, limits: Limits):
    """Whether its size is told before, or found out at its end."""
    assert fetch(server.url("/"), replace(limits, max_media_bytes=len(BODY)), server.network()) == BODY
    assert fetch(server.url("/chunks"), replace(limits, max_media_bytes=5), server.network()) == b"hello"
    for path, size in (("/", len(BODY)), ("/chunks", 5)):
        with pytest.raises(InvalidInput, match=f"over the limit of {size - 1} bytes"):
            fetch(server.url(path), replace(limits, max_media_bytes=size - 1), server.network())


def test_paths_are_sent_as_browsers_send_them(server: TlsServer, limits: Limits):
    fetch(server.url("/?q=a b%20c&ü=1#part"), limits, server.network())
    assert server.seen[-1][1] == "/?q=a%20b%20c&%C3%BC=1"
    fetch(server.url("/to-umlaut"), limits, server.network())  # in a header http.client reads bytes as Latin-1
    assert server.seen[-1][1] == "/?gr%C3%BCn=a%20b%20c"


def test_the_checked_address_is_the_one_that_is_reached(server: TlsServer, limits: Limits):
    """DNS rebinding: a second look-up would give an address that was not checked."""
    network = server.network([LOOPBACK], ["127.0.0.99"], allowed=[LOOPBACK])
    assert fetch(server.url(), limits, network) == BODY
    assert network.resolve(HOST, 443) == ["127.0.0.99"]  # so the answer was asked for once


def test_a_redirect_is_looked_up_and_checked_anew(server: TlsServer, limits: Limits):
    network = server.network([LOOPBACK], ["127.0.0.99"], allowed=[LOOPBACK])
    before = len(server.seen)
    with pytest.raises(InvalidInput, match=f"{HOST} is not at a public address"):
        fetch(server.url("/once"), limits, network)
    assert len(server.seen) == before + 1


@pytest.mark.parametrize(
    "answer", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:192.168.0.1"], ["fe80::1%eth0"], []]
)
def test_an_answer_with_an_address_that_is_not_public_is_refused(server: TlsServer, limits: Limits, answer: list[str]):
    """The real check, and a resolver that lies; the server above is at such an address and sees nothing."""
    network = replace(server.network(answer), is_allowed=INTERNET.is_allowed)
    before = len(server.seen)
    with pytest.raises(InvalidInput, match="is not at a public address"):
        fetch(server.url(), limits, network)
    assert len(server.seen) == before


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f000001", "2130706433", "0", "[::1]", "[::ffff:127.0.0.1]"])
def test_the_systems_resolver_is_checked_too(host: str):
    with pytest.raises(
        (InvalidInput, Unreachable), match="is not at a public address|not among|cannot be looked up|no host"
    ):
        fetch(f"https://{host}/", Limits(fetch_hosts=("*",)))


@pytest.mark.parametrize(
    ("path", "kind", "sentence"),
    [
        ("/error", Unreachable, "media.test answered with status 503"),
        ("/slow", Unreachable, "media.test answered with status 408"),
        ("/early", Unreachable, "media.test answered with status 425"),
        ("/often", Unreachable, "media.test answered with status 429"),
        ("/gone", InvalidInput, "media.test answered with status 410"),
        ("/nowhere", InvalidInput, "media.test answered with status 302"),
        ("/gzip", InvalidInput, "media.test sent compressed content \\(gzip\\)"),
        ("/gzip-after-upload", InvalidInput, "media.test sent compressed content \\(aws-chunked,gzip\\)"),
        ("/coded-chunks", InvalidInput, "media.test sent content in the transfer coding gzip, chunked"),
        ("/promise", InvalidInput, "over the limit of 20000 bytes"),
        ("/flood", InvalidInput, "over the limit of 20000 bytes"),
        ("/cut", Unreachable, "before the end of the content"),
        ("/cut-chunks", Unreachable, "failed \\(IncompleteRead\\)"),
        ("/minus-one", Unreachable, "failed \\(HTTPException\\)"),  # which http.client reads to the end, however far
        ("/minus-five", Unreachable, "failed \\(ValueError\\)"),
        ("/\ud800", InvalidInput, "the URL is malformed"),
        ("/no-http", Unreachable, "failed \\(BadStatusLine\\)"),
        ("/loop", InvalidInput, "more than 3 redirects"),
        ("/to-http", InvalidInput, "only https URLs are fetched, got http"),
        ("/to-file", InvalidInput, "only https URLs are fetched, got file"),
        ("/to-metadata", InvalidInput, "169.254.169.254 is not among the hosts"),
        ("/to-nothing", InvalidInput, "media.test redirects to a URL that is malformed"),
        ("/to-other", InvalidInput, "other.test is not among the hosts"),
    ],
)
def test_what_goes_wrong_gets_a_sentence(server: TlsServer, limits: Limits, path: str, kind: type, sentence: str):
    with pytest.raises(kind, match=sentence):
        fetch(server.url(path), limits, server.network())


@pytest.mark.parametrize("path", ["/drip", "/drip-header", "/hints-alone"])
def test_a_slow_server_gets_the_whole_time_and_no_more(server: TlsServer, limits: Limits, path: str):
    """Each piece comes within a socket's timeout; all of them together do not come within the limit."""
    with pytest.raises(Unreachable, match="media.test did not answer within 0.3 s"):
        fetch(server.url(path), replace(limits, fetch_timeout_s=0.3), server.network())


def test_silence_ends_too(server: TlsServer):
    with silent_server() as port:
        limits = Limits(fetch_hosts=("*:" + str(port),), fetch_timeout_s=0.2)
        with pytest.raises(Unreachable, match="did not answer within 0.2 s"):
            fetch(f"https://{HOST}:{port}/", limits, server.network())


def test_so_does_a_resolver_that_hangs(server: TlsServer, limits: Limits):
    wait = threading.Event()
    network = replace(server.network(), resolve=lambda host, port: [LOOPBACK] if wait.wait(10) else [])
    with pytest.raises(Unreachable, match="did not answer within 0.1 s"):
        fetch(server.url(), replace(limits, fetch_timeout_s=0.1), network)
    wait.set()


@pytest.mark.parametrize(
    ("errno", "kind", "sentence"),
    [(socket.EAI_NONAME, InvalidInput, "there is no host"), (socket.EAI_AGAIN, Unreachable, "cannot be looked up now")],
)
def test_a_name_without_an_address(server: TlsServer, limits: Limits, errno: int, kind: type, sentence: str):
    def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(errno, "no")

    with pytest.raises(kind, match=sentence):
        fetch(server.url(), limits, replace(server.network(), resolve=resolve))


def test_the_next_address_is_tried(server: TlsServer, limits: Limits):
    network = server.network(["127.0.0.2", LOOPBACK], allowed=["127.0.0.2", LOOPBACK])  # nobody listens at the first
    assert fetch(server.url(), limits, network) == BODY
    with pytest.raises(Unreachable, match="failed \\(ConnectionRefusedError\\)"):
        fetch(server.url(), limits, server.network(["127.0.0.2"], allowed=["127.0.0.2"]))


def test_an_address_that_does_not_answer_leaves_time_for_the_next(
    server: TlsServer, limits: Limits, monkeypatch: pytest.MonkeyPatch
):
    connect, waited = socket.create_connection, []

    def connect_late(address: tuple[str, int], timeout: float) -> socket.socket:
        if address[0] != LOOPBACK:
            waited.append(timeout)
            raise TimeoutError
        return connect(address, timeout)

    monkeypatch.setattr(socket, "create_connection", connect_late)
    network = server.network(["127.0.0.2", LOOPBACK], allowed=["127.0.0.2", LOOPBACK])
    assert fetch(server.url(), limits, network) == BODY
    assert len(waited) == 1
    assert waited[0] <= limits.fetch_timeout_s / 2


def test_no_authority_is_read_for_a_connection(server: TlsServer, monkeypatch: pytest.MonkeyPatch):
    """http.client would read them all, 20 ms of every request, for a context that nobody uses."""
    server.answers["/a"] = content(b"a")
    network = server.network()
    monkeypatch.delattr(ssl.SSLContext, "load_default_certs")
    assert fetch(server.url("/a"), Limits(fetch_hosts=(server.host,)), network) == b"a"


def test_the_certificate_must_be_the_hosts(server: TlsServer, tmp_path: Path):
    limits = Limits(fetch_hosts=("*:" + str(server.port),))
    with pytest.raises(InvalidInput, match="certificate of wrong.test cannot be verified: Hostname mismatch"):
        fetch(f"https://wrong.test:{server.port}/", limits, server.network())
    stranger = ssl.create_default_context(cafile=str(certificate(tmp_path)))
    with pytest.raises(InvalidInput, match="certificate of media.test cannot be verified"):
        fetch(server.url(), limits, replace(server.network(), trust=lambda: stranger))


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://media.test/", "only https URLs are fetched, got http"),
        ("ftp://media.test/", "got ftp"),
        ("//media.test/", "got none"),
        ("https://user:secret@media.test/", "a URL with a user name or password"),
        ("https://@media.test/", "a URL with a user name or password"),
        ("https:///path", "needs a host name"),
        ("https://bücher.test/", "xn--"),
        ("https://media.test\0/", "xn--"),
        ("https://media .test/", "xn--"),
        ("https://media.test:8443/", "media.test:8443 is not among the hosts"),
        ("https://media.test:99999/", "malformed"),
        ("https://media.test:x/", "malformed"),
        ("https://[::1/", "malformed"),
        ("https://evil.test/", "evil.test is not among the hosts"),
        ("https://evil.test/media.test", "evil.test is not among the hosts"),
        ("https://media.test.evil.test/", "not among the hosts"),
        ("https://evilcdn.test/", "not among the hosts"),
        ("https://cdn.test/", "not among the hosts"),
        ("https://media.test\\@evil.test/", "user name|malformed|not among"),
    ],
)
def test_a_url_that_is_not_allowed_is_refused_before_any_look_up(url: str, sentence: str):
    with pytest.raises(InvalidInput, match=sentence):
        check_url(url, ("media.test", "*.cdn.test", "ports.test:8443"))


@pytest.mark.parametrize(
    "url",
    [
        "https://media.test/",
        "HTTPS://MEDIA.test./a",
        "https://media.test:443",
        "https://a.b.cdn.test/",
        "https://ports.test:8443/x",
    ],
)
def test_a_url_on_the_list_passes(url: str):
    check_url(url, ("media.test", "*.cdn.test", "ports.test:8443"))


@settings(max_examples=200)
@given(st.one_of(st.text(), st.text().map("https://{}".format), st.text().map("https://[{}".format)))
def test_whatever_the_url_is_it_is_refused_with_a_sentence(url: str):
    limits = Limits(fetch_hosts=("*",), fetch_timeout_s=5)
    nowhere = Network(resolve=lambda host, port: ["127.0.0.1"])
    with pytest.raises((InvalidInput, Unreachable)):
        fetch(url, limits, nowhere)


def test_fetching_is_off_by_default():
    with pytest.raises(InvalidInput, match="`image`: this worker does not fetch URLs"):
        bytes_of("https://media.test/a.png", "image", Limits())


def test_several_are_fetched_at_the_same_time_and_come_in_order(server: TlsServer, monkeypatch: pytest.MonkeyPatch):
    together = threading.Barrier(8, timeout=10)  # nobody is answered before eight have asked

    def when_all_are_here(request: Any) -> None:
        together.wait()
        content(request.path.encode())(request)

    server.answers["/together"] = when_all_are_here
    monkeypatch.setattr(engine.fetching.fetch, "INTERNET", server.network())
    limits = Limits(fetch_hosts=(server.host,), fetch_timeout_s=20)
    items = [(f"images[{index}]", server.url(f"/together?{index}")) for index in range(16)]
    assert list(each_bytes_of(items, limits, Spent())) == [f"/together?{index}".encode() for index in range(16)]
    items = [("images[0]", server.url("/")), ("images[1]", server.url("/gone")), ("images[2]", server.url("/"))]
    with pytest.raises(InvalidInput, match=r"`images\[1\]`: media.test answered with status 410"):
        list(each_bytes_of(items, limits, Spent()))


def test_who_drops_it_does_not_wait_for_what_is_fetched(server: TlsServer, monkeypatch: pytest.MonkeyPatch):
    """The last reference to it is an error's, which is let go on the event loop."""
    asked, dropped, in_time = threading.Event(), threading.Event(), list[bool]()

    def when_dropped(request: Any) -> None:
        asked.set()
        in_time.append(dropped.wait(5))
        content(BODY)(request)

    server.answers["/when-dropped"] = when_dropped
    monkeypatch.setattr(engine.fetching.fetch, "INTERNET", server.network())
    limits = Limits(fetch_hosts=(server.host,), fetch_timeout_s=20)
    slow = server.url("/when-dropped")
    contents = each_bytes_of(
        [("images[0]", LANDSCAPE), *[(f"images[{i}]", slow) for i in range(1, 9)]], limits, Spent()
    )
    assert next(contents)
    assert asked.wait(10)
    contents.close()
    dropped.set()
    while not in_time:
        time.sleep(0.01)
    assert all(in_time)


def test_the_urls_of_a_job_are_bounded_together(server: TlsServer, monkeypatch: pytest.MonkeyPatch):
    """Bytes and seconds, over all parts of a job that is split; what is no URL costs nothing."""
    monkeypatch.setattr(engine.fetching.fetch, "INTERNET", server.network())
    limits = Limits(fetch_hosts=(server.host,), max_fetch_bytes=3 * len(BODY), max_media_bytes=20_000)
    task = ImageTransform(limits)
    job = {"images": [*[server.url("/?bounded")] * 9, LANDSCAPE]}
    request = task.parse(job)
    assert request.spent is not task.parse(job).spent, "another job's"
    parts = task.split(request, 1)
    sizes = [sum(map(len, each_bytes_of(part.items, limits, part.spent))) for part in parts[:3]]
    assert sizes == [len(BODY)] * 3
    sentence = (
        rf"`images\[3\]`: the fetches before it brought {3 * len(BODY)} bytes, allowed in one job are {3 * len(BODY)} "
        r"\(MAX_FETCH_BYTES\); split the job"
    )
    with pytest.raises(InvalidInput, match=sentence):
        list(each_bytes_of(parts[3].items, limits, parts[3].spent))
    assert [path for _, path, _, _ in server.seen if "bounded" in path] == ["/?bounded"] * 3
    assert len(list(each_bytes_of(parts[9].items, limits, parts[9].spent))) == 1
    spent = Spent()
    spent.add(1, 600.0)
    with pytest.raises(
        InvalidInput, match=r"took 600.0 s, allowed in one job are 600 s \(MAX_FETCH_S\); split the job"
    ):
        spent.check("audio", Limits())


def test_the_images_of_a_job_are_fetched_side_by_side(server: TlsServer, monkeypatch: pytest.MonkeyPatch):
    together = threading.Barrier(4, timeout=10)

    def wait(request: Any) -> None:
        together.wait()
        content(base64.b64decode(LANDSCAPE))(request)

    server.answers["/image"] = wait
    monkeypatch.setattr(engine.fetching.fetch, "INTERNET", server.network())
    config = {"image": {"height": 8, "width": 8, "resize": "exact", "size": [8, 8]}}
    task = ImageTask(config, Limits(fetch_hosts=(server.host,)))
    rows = task.preprocess(task.parse({"images": [server.url("/image")] * 4}))
    assert [row.feeds["pixels"].shape for row in rows] == [(8, 8, 3)] * 4


def test_a_job_that_waits_for_others_is_fetched_once(server: TlsServer, monkeypatch: pytest.MonkeyPatch):
    server.answers["/waits"] = content(base64.b64decode(LANDSCAPE))
    monkeypatch.setattr(engine.fetching.fetch, "INTERNET", server.network())
    monkeypatch.setattr(OF_PROCESS, "most", 1000)
    config = {"image": {"height": 8, "width": 8, "resize": "exact", "size": [8, 8]}}
    task = ImageTask(config, Limits(fetch_hosts=(server.host,)))
    request = task.parse({"image": server.url("/waits")})
    with Share() as other:
        other.reach(1000)
        with request.share:
            with pytest.raises(Overloaded):
                task.preprocess(request)
            other.__exit__()
            other.__enter__()
            assert len(task.preprocess(request)) == 1
    assert [path for _, path, _, _ in server.seen].count("/waits") == 1


@pytest.mark.parametrize("kept", [32_000_000, 10 * len(base64.b64decode(LANDSCAPE))])
def test_parts_of_a_stream_that_are_split_again_fetch_nothing_again(
    server: TlsServer, monkeypatch: pytest.MonkeyPatch, kept: int
):
    """Those whose answer was too large, and those behind them that were in work by then; as far as memory goes."""
    monkeypatch.setattr("engine.fetching.spent._MOST_KEPT", kept)
    server.answers["/split"] = content(base64.b64decode(LANDSCAPE))
    monkeypatch.setattr(engine.fetching.fetch, "INTERNET", server.network())
    monkeypatch.setattr("handler.parts._ROWS", 8)
    monkeypatch.setattr("handler.parts._LARGEST", 3000)
    task = ImageTransform(Limits(fetch_hosts=(server.host,)))
    urls = [server.url(f"/split?{index}") for index in range(40)]
    bodies: list[bytes] = []

    async def keep(body: bytes) -> None:
        bodies.append(body)

    job = {"input": {"images": urls, "width": 24, "stream": True}}
    server.seen.clear()
    assert asyncio.run(Handler(task, Passage(Stats()), dict).body(job, keep)) == b'{"output":[]}'
    answers = [json.loads(body)["output"] for body in bodies]
    assert max(map(len, answers)) < 8, "they were split"
    assert max(map(len, bodies)) <= 3000
    one = asyncio.run(Handler(task, Passage(Stats()), dict).handle({"input": {"image": LANDSCAPE, "width": 24}}))
    assert [image for answer in answers for image in answer] == [one] * 40
    asked = Counter(path for _, path, _, _ in server.seen)
    assert set(asked) == {f"/split?{index}" for index in range(40)}
    assert (max(asked.values()) > 1) == (kept < 32_000_000)
    assert sum(count == 1 for count in asked.values()) >= 10


def test_a_fetch_does_not_hold_up_other_jobs(server: TlsServer, monkeypatch: pytest.MonkeyPatch):
    """A task that blocks waits in a thread: the event loop answers health meanwhile, however small the payload is."""
    asked, answered = threading.Event(), threading.Event()

    def when_told(request: Any) -> None:
        asked.set()
        answered.wait(10)
        content(BODY)(request)

    server.answers["/when-told"] = when_told
    limits = Limits(fetch_hosts=(server.host,), max_media_bytes=20_000)
    monkeypatch.setattr(engine.fetching.fetch, "INTERNET", server.network())

    class Sizes:
        blocking = True

        def parse(self, payload: Any) -> Any:
            return payload

        def preprocess(self, request: Any) -> Any:
            return [len(bytes_of(request["url"], "url", limits))]

        def postprocess(self, request: Any, outputs: Any) -> Any:
            return {"bytes": outputs[0]}

    class Echo(Passage):
        async def run(self, rows: Any, on_rows_done: Any = None) -> Any:
            return rows

    async def scenario() -> None:
        handler = Handler(Sizes(), Echo(Stats()), lambda: {"healthy": True})  # type: ignore[arg-type]
        job = asyncio.create_task(handler.handle({"id": "1", "input": {"url": server.url("/when-told")}}))
        await asyncio.to_thread(asked.wait, 10)
        assert await handler.handle({"id": "2", "input": {"health": True}}) == {"healthy": True}
        assert not job.done()
        answered.set()
        assert await job == {"bytes": len(BODY)}

    asyncio.run(scenario())
