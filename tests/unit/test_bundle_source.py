"""Bundles that are not a folder: a tar behind an address, and the Hub's cache."""

import errno
import fcntl
import functools
import http.server
import os
import re
import runpy
import shutil
import socket
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from engine.bundle import open_bundle, write_manifest
from engine.config import Settings
from engine.errors import BundleError, ConfigError
from engine.files.turns import mark
from handler.boot import boot
from handler.startup.bundle_source import bundle_folder
from handler.startup.fetch_bundle import _put, copy_in, discard, fetch
from handler.startup.timeline import Timeline
from handler.startup.verification import Verification
from tests.bundles import move_weights_out, write_small_bundle
from tests.ports import serving
from tests.processes import as_another_user, killed
from tests.tls_server import TlsServer, certificate


class Server:
    """Serves a folder and counts the requests; the first `failures` of them get status 503.

    `always` is a status and a location instead; `moved` says where some paths redirect to. The first `cut` replies end
    in the middle.
    """

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self.failures = 0
        self.always: tuple[int, str] | None = None
        self.moved: dict[str, str] = {}
        self.delay_s = 0.0
        self.cut = 0
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                time.sleep(outer.delay_s)
                moved = outer.moved.get(self.path.partition("?")[0])
                if status := outer.always or (moved and (302, moved)):
                    self.send_response(status[0])
                    self.send_header("Location", status[1])
                    self.end_headers()
                elif len(outer.requests) <= outer.failures:
                    self.send_error(503)
                elif len(outer.requests) <= outer.cut:
                    content = Path(self.translate_path(self.path)).read_bytes()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content[: len(content) // 2])
                else:
                    super().do_GET()

            def log_message(self, *args: Any) -> None: ...

        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
        )
        self.url = ""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    server = Server(tmp_path / "www")
    with serving(server.server) as server.url:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.startup.fetch_bundle.time.sleep", lambda seconds: None)


def settings(**values: str) -> Settings:
    return Settings.from_environ({name.upper(): value for name, value in values.items()})


def hash_of(bundle: Path) -> str:
    return open_bundle(bundle).sha256


def pack(bundle: Path, tar: Path, inside: str = ".") -> None:
    with tarfile.open(tar, "w:gz" if tar.suffix == ".gz" else "w") as archive:
        archive.add(bundle, inside)


def fetched(server: Server, bundle: Path, cache: Path, name: str = "bundle.tar") -> Path:
    return bundle_folder(
        settings(
            bundle_url=f"{server.url}/{name}?signature=secret", bundle_sha256=hash_of(bundle), bundle_cache=str(cache)
        )
    )


@pytest.mark.parametrize(("name", "inside"), [("bundle.tar", "."), ("bundle.tar.gz", "."), ("bundle.tar", "my-bundle")])
def test_a_tar_is_fetched_once_verified_and_kept(
    server: Server, small_bundle: Path, tmp_path: Path, name: str, inside: str, capsys
):
    pack(small_bundle, tmp_path / "www" / name, inside)
    for _ in range(2):
        folder = fetched(server, small_bundle, tmp_path / "cache", name)
        open_bundle(folder).verify()
    assert len(server.requests) == 1
    assert folder.name == hash_of(small_bundle)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [f".{folder.name}.lock", folder.name]
    assert "secret" not in capsys.readouterr().out


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with `volume`, which nobody else may write, and `elsewhere`, which anybody may, for /tmp/bundles."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "volume").mkdir()
        (folder / "elsewhere").mkdir()
        for path, mode in ((folder, 0o755), (folder / "volume", 0o555), (folder / "elsewhere", 0o777)):
            path.chmod(mode)
        monkeypatch.setattr("handler.startup.bundle_source._ELSEWHERE", folder / "elsewhere/bundles")
        yield folder


def test_a_volume_of_another_user_costs_no_start(
    server: Server, small_bundle: Path, tmp_path: Path, others: Path, capfd
):
    """RunPod's volumes may belong to root, and the image's user is 10001."""
    pack(small_bundle, tmp_path / "www" / "b.tar")
    volume, sha256 = others / "volume", hash_of(small_bundle)
    wanted = settings(bundle_url=f"{server.url}/b.tar", bundle_sha256=sha256)
    for _ in range(2):  # the second finds it
        assert as_another_user(lambda: bundle_folder(wanted, volume)) == others / "elsewhere/bundles" / sha256
    assert len(server.requests) == 1
    assert "the volume cannot be written" in capfd.readouterr().out
    named = settings(bundle_url=f"{server.url}/b.tar", bundle_sha256=sha256, bundle_cache=str(volume / "bundles"))
    assert "point BUNDLE_CACHE to a folder" in str(as_another_user(lambda: bundle_folder(named, volume)))
    # Somebody who may write has put it there.
    volume.chmod(0o755)
    kept = bundle_folder(wanted, volume)
    volume.chmod(0o555)
    assert kept == volume / "bundles" / sha256
    assert as_another_user(lambda: bundle_folder(wanted, volume)) == kept
    assert "the volume cannot be written" not in capfd.readouterr().out


def test_the_worker_serves_a_fetched_bundle(server: Server, small_bundle: Path, tmp_path: Path):
    """Of a hash in capitals too, by which it is known in the tar, in the cache and in the end."""
    (small_bundle / "unlisted").touch()
    pack(small_bundle, tmp_path / "www" / "b.tar", "my-bundle")
    wanted = hash_of(small_bundle)
    worker = boot(
        settings(bundle_url=f"{server.url}/b.tar", bundle_sha256=wanted.upper(), bundle_cache=str(tmp_path / "cache")),
        Timeline(),
    )
    worker.batcher.close()
    assert worker.bundle.path == tmp_path / "cache" / wanted
    assert not (worker.bundle.path / "unlisted").exists()


def test_workers_that_start_together_fetch_once(server: Server, small_bundle: Path, tmp_path: Path):
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    server.delay_s = 0.3
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(fetched(server, small_bundle, tmp_path / "cache")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4
    assert len(server.requests) == 1


def test_a_fetch_that_takes_long_says_how_far_it_is(
    server: Server,
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("handler.log._LONG_S", 0.0001)
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    fetched(server, small_bundle, tmp_path / "cache")
    said = re.findall(r"still fetching the bundle: [\d.]+ kB of ([\d.]+ kB) ", capsys.readouterr().out)
    assert 0 < len(said) < 15
    assert set(said) == {f"{(tmp_path / 'www' / 'bundle.tar').stat().st_size / 1e3:.1f} kB"}


def test_another_bundle_behind_the_address_is_refused(server: Server, small_bundle: Path, tmp_path: Path):
    other = write_small_bundle(tmp_path / "other", model="other")
    pack(other, tmp_path / "www" / "bundle.tar")
    with pytest.raises(BundleError, match="BUNDLE_SHA256 names"):
        fetched(server, small_bundle, tmp_path / "cache")
    assert [p for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")] == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("tokenizer.json", "the tar's tokenizer.json has 2 bytes"), ("graphs/model/weights.bin", "weights.bin does not")],
)
def test_a_changed_file_in_the_tar_is_refused(
    server: Server, small_bundle: Path, tmp_path: Path, name: str, sentence: str
):
    move_weights_out(small_bundle)
    wanted, file = hash_of(small_bundle), small_bundle / name
    file.write_bytes(bytes(2 if name == "tokenizer.json" else file.stat().st_size))
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    with pytest.raises(BundleError, match=sentence):
        fetched(server, small_bundle, tmp_path / "cache")
    assert not (tmp_path / "cache" / wanted).exists()


@pytest.mark.parametrize("kind", ["../outside", "/outside", "link"])
def test_a_tar_that_leaves_its_folder_is_refused(server: Server, small_bundle: Path, tmp_path: Path, kind: str):
    with tarfile.open(tmp_path / "www" / "bundle.tar", "w") as archive:
        entry = tarfile.TarInfo(kind)
        if kind == "link":
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(entry)
    with pytest.raises(BundleError, match="which no bundle does"):
        fetched(server, small_bundle, tmp_path / "cache")
    assert not (tmp_path / "outside").exists()


def test_what_is_not_a_tar_and_what_is_not_there(server: Server, small_bundle: Path, tmp_path: Path, quick: None):
    (tmp_path / "www" / "bundle.tar").write_text("<html>" * 1000)
    with pytest.raises(BundleError, match="cannot be fetched .*; see that BUNDLE_URL is a whole tar"):
        fetched(server, small_bundle, tmp_path / "cache")
    server.requests.clear()
    with pytest.raises(BundleError, match=r"404.*; see that BUNDLE_URL is right") as error:
        fetched(server, small_bundle, tmp_path / "cache", "missing.tar")
    assert "secret" not in str(error.value)
    assert len(server.requests) == 1, "what is not there is not asked for again"


def test_a_server_that_fails_is_asked_again(server: Server, small_bundle: Path, tmp_path: Path, quick: None):
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    server.failures = 2
    fetched(server, small_bundle, tmp_path / "cache")
    assert len(server.requests) == 3


def test_a_reply_that_ends_in_the_middle_is_asked_for_again(
    server: Server, small_bundle: Path, tmp_path: Path, quick: None
):
    """The files that it brought are no files of the tar that stand there twice."""
    (small_bundle / "vocabulary.txt").write_bytes(os.urandom(100_000))  # a tar is read in pieces
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    server.cut = 2
    open_bundle(fetched(server, small_bundle, tmp_path / "cache")).verify()
    assert len(server.requests) == 3


def test_a_turn_that_never_comes_is_told(
    server: Server, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
):
    monkeypatch.setattr("handler.startup.fetch_bundle._TURN_S", 0.1)
    (tmp_path / "cache").mkdir()
    with open(tmp_path / "cache" / f".{hash_of(small_bundle)}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BundleError, match=r"another worker has held .*\.lock for 0\.1 s; remove it"):
            fetched(server, small_bundle, tmp_path / "cache")
    assert server.requests == []


def test_where_the_volume_knows_no_locks_each_worker_fetches(
    server: Server, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_locks(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    server.delay_s = 0.3
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(fetched(server, small_bundle, tmp_path / "cache")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 2
    open_bundle(folders[0]).verify()
    assert [path.name for path in (tmp_path / "cache").iterdir() if ".partial" in path.name] == []


@pytest.mark.parametrize(
    ("location", "fault"),
    [
        ("http://x.example/b.tar?signature=secret", "http://x.example/b.tar?***, which is not allowed"),
        ("ftp://x.example/b.tar", "ftp://x.example/b.tar, which is not allowed"),
        ("https://me:secret@x.example/b.tar", "https://***@x.example/b.tar, which has a user name"),
    ],
)
def test_a_redirect_goes_where_the_address_itself_may(
    server: Server, small_bundle: Path, tmp_path: Path, location: str, fault: str
):
    server.always = (302, location)
    with pytest.raises(BundleError, match=re.escape(f"/bundle.tar redirects to {fault}")) as error:
        fetched(server, small_bundle, tmp_path / "cache")
    assert "secret" not in str(error.value)


def test_a_redirect_is_followed(server: Server, small_bundle: Path, tmp_path: Path):
    pack(small_bundle, tmp_path / "www" / "other.tar")
    server.moved = {"/bundle.tar": "/other.tar"}
    open_bundle(fetched(server, small_bundle, tmp_path / "cache")).verify()


def test_a_server_that_cannot_be_reached_is_named_and_what_failed(
    server: Server, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
):
    monkeypatch.setattr("handler.startup.fetch_bundle._SILENCE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        urls = [f"https://127.0.0.1:{one.getsockname()[1]}/b.tar" for one in (silent, closed)]
        happened = ["did not answer: nothing for 0.1 s", "Connection refused"]
        for url, what in zip(urls, happened, strict=True):
            host = url.split("/")[2]
            with pytest.raises(BundleError, match=rf"{host}.* {what}\); see that .* {host} can be reached from here"):
                fetch(url, "0" * 64, tmp_path / "cache" / "0")
    for nowhere in ("nowhere.invalid", "x" * 64 + ".example"):
        server.always = (302, f"https://{nowhere}/b.tar")
        with pytest.raises(BundleError, match=rf"no address of {nowhere} was found: .* can be reached from here"):
            fetched(server, small_bundle, tmp_path / "cache")
    with pytest.raises(BundleError, match=r"\(\[SSL.*; see that BUNDLE_URL is right and that .* takes https"):
        fetch(server.url.replace("http:", "https:") + "/b.tar", "0" * 64, tmp_path / "cache" / "0")


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY"])
def test_a_proxy_is_taken_and_named_where_it_is_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None, name: str
):
    for one in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(one, raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        proxy = f"127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv(name, f"http://user:secret@{proxy}")
        named = (
            rf"\(the proxy http://\*\*\*@{proxy} of https_proxy: Connection refused\); see that BUNDLE_URL is right "
            "and that nowhere.invalid can be reached from here through that proxy, or name it in no_proxy$"
        )
        with pytest.raises(BundleError, match=named):
            fetch("https://nowhere.invalid/b.tar", "0" * 64, tmp_path / "cache" / "0")
    monkeypatch.setenv("no_proxy", "nowhere.invalid")
    with pytest.raises(BundleError, match=r"no address of nowhere.invalid was found: .* from here$"):
        fetch("https://nowhere.invalid/b.tar", "0" * 64, tmp_path / "cache" / "0")


@pytest.mark.parametrize(
    ("status", "times", "fix"),
    [
        (408, 3, "start again when 127"),
        (429, 3, "start again when 127"),
        (500, 3, "start again when 127"),
        (403, 1, "see that the signature in BUNDLE_URL is whole and has not expired"),
    ],
)
def test_a_server_that_says_later_is_asked_again(
    server: Server, small_bundle: Path, tmp_path: Path, status: int, times: int, fix: str, quick: None
):
    server.always = (status, "")
    with pytest.raises(BundleError, match=f"cannot be fetched .HTTP Error {status}.*; {fix}"):
        fetched(server, small_bundle, tmp_path / "cache")
    assert len(server.requests) == times


def test_a_server_that_nobody_vouches_for_is_asked_once_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    server = TlsServer(certificate(tmp_path))
    try:
        with pytest.raises(BundleError, match=r"VERIFY_FAILED.*; the worker trusts .*have SSL_CERT_FILE name a file"):
            fetch(f"https://127.0.0.1:{server.port}/b.tar", "0" * 64, tmp_path / "cache" / "0")
    finally:
        server.close()
    assert "trying again" not in capsys.readouterr().out


def test_a_network_that_goes_away_is_not_the_disks_fault(
    server: Server, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
):
    pack(small_bundle, tmp_path / "www" / "bundle.tar")

    def read(self: object, size: int) -> bytes:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr("http.client.HTTPResponse.read", read)
    with pytest.raises(BundleError, match="cannot be fetched .*No route to host"):
        fetched(server, small_bundle, tmp_path / "cache")
    assert len(server.requests) == 3


def test_a_damaged_manifest_in_the_cache_is_replaced(server: Server, small_bundle: Path, tmp_path: Path):
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    folder = fetched(server, small_bundle, tmp_path / "cache")
    (folder / "manifest.json").write_text("{")
    assert fetched(server, small_bundle, tmp_path / "cache") == folder
    open_bundle(folder).verify()


def test_a_copy_that_was_cut_short_is_replaced_however_often(server: Server, small_bundle: Path, tmp_path: Path):
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    folder = fetched(server, small_bundle, tmp_path / "cache")
    for _ in range(2):
        (folder / "tokenizer.json").write_text("")
        assert fetched(server, small_bundle, tmp_path / "cache") == folder
        open_bundle(folder).verify()
    assert len(server.requests) == 3
    assert {p.name for p in folder.parent.iterdir()} == {folder.name, f".{folder.name}.lock"}


def test_a_copy_that_rotted_is_fetched_again_by_the_next_worker(
    server: Server, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    folder = fetched(server, small_bundle, tmp_path / "cache")
    content = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(content.swapcase())
    wanted = settings(
        bundle_url=f"{server.url}/bundle.tar", bundle_sha256=folder.name, bundle_cache=str(folder.parent), engine="fake"
    )
    with monkeypatch.context() as patched, pytest.raises(BundleError, match=r"SHA-256.*cannot be removed .*Read-only"):

        def refuse(*_: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        patched.setattr(os, "rename", refuse)
        boot(wanted, Timeline())
    with pytest.raises(BundleError, match="removed from the cache, and the next worker fetches it again"):
        boot(wanted, Timeline())
    boot(wanted, Timeline()).batcher.close()
    assert len(server.requests) == 2


def test_damage_is_told_and_not_what_follows_from_it(server: Server, small_bundle: Path, tmp_path: Path):
    """No engine loads with such weights. And their copy must go, or every worker would find it in the cache."""
    move_weights_out(small_bundle, integers=True)
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    folder = fetched(server, small_bundle, tmp_path / "cache")
    weights = folder / "graphs/model/weights.bin"
    weights.write_bytes(bytes([0x7F]) * weights.stat().st_size)
    wanted = settings(
        bundle_url=f"{server.url}/bundle.tar",
        bundle_sha256=folder.name,
        bundle_cache=str(folder.parent),
        engine="onnxruntime-cpu",
    )
    with pytest.raises(BundleError, match=r"weights\.bin does not match the SHA-256 .*; it was removed from the cache"):
        boot(wanted, Timeline())


@pytest.mark.parametrize("meanwhile", ["removed", "being fetched", "fetched"])
def test_damage_that_is_found_late_costs_no_copy_that_another_worker_fetched_meanwhile(
    server: Server, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
):
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    folder = fetched(server, small_bundle, tmp_path / "cache")
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes().swapcase())
    wanted = settings(
        bundle_url=f"{server.url}/bundle.tar", bundle_sha256=folder.name, bundle_cache=str(folder.parent), engine="fake"
    )
    wait, found = Verification.wait, []

    def late(self: Verification) -> None:
        found.append(self)
        try:
            wait(self)
        finally:
            if len(found) == 1:
                with pytest.raises(BundleError, match="it was removed from the cache, and the next worker fetches it"):
                    boot(wanted, Timeline())
                if meanwhile == "fetched":
                    fetched(server, small_bundle, folder.parent)
                if meanwhile == "being fetched":
                    fcntl.flock(lock, fcntl.LOCK_EX)

    monkeypatch.setattr(Verification, "wait", late)
    sentence = "SHA-256.* another worker has removed it from the cache meanwhile"
    with open(folder.with_name(f".{folder.name}.lock")) as lock, pytest.raises(BundleError, match=sentence):
        boot(wanted, Timeline())
    assert folder.exists() == (meanwhile == "fetched")
    boot(wanted, Timeline()).batcher.close()
    assert len(server.requests) == 2


def test_a_damaged_copy_is_removed_when_it_is_its_turn(
    server: Server, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
):
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    folder = fetched(server, small_bundle, tmp_path / "cache")
    damaged = copy_in(folder)
    assert damaged
    monkeypatch.setattr("handler.startup.fetch_bundle._TURN_S", 0.1)
    with open(folder.with_name(f".{folder.name}.lock")) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BundleError, match=r"another worker has held .*\.lock"):
            discard(folder, damaged)
    assert folder.exists()
    assert discard(folder, damaged)
    assert not folder.exists()


def test_a_copy_that_came_while_the_lock_was_waited_for_stays(
    server: Server, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    folder = fetched(server, small_bundle, tmp_path / "cache")
    damaged = copy_in(folder)
    assert damaged

    def late(folder: Path, wait_s: float) -> AbstractContextManager[None]:
        folder.rename(tmp_path / "removed")
        shutil.copytree(small_bundle, folder)
        return nullcontext()

    monkeypatch.setattr("handler.startup.fetch_bundle._turn", late)
    assert not discard(folder, damaged)
    open_bundle(folder).verify()


def test_of_two_copies_the_first_is_kept(small_bundle: Path, tmp_path: Path):
    """Where there are no locks: a worker may be booting from it."""
    folder, wanted = tmp_path / "first", hash_of(small_bundle)
    for name in ("first", "second"):
        shutil.copytree(small_bundle, tmp_path / name)
    first = copy_in(folder)
    _put(tmp_path / "second", folder, wanted)
    assert copy_in(folder) == first
    (folder / "tokenizer.json").write_text("")
    _put(tmp_path / "second", folder, wanted)
    assert copy_in(folder) != first


@pytest.mark.parametrize(
    "reply",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2000\r\n" + bytes(100),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n" + bytes(100),
    ],
)
def test_a_server_that_breaks_the_protocol_is_asked_again(
    small_bundle: Path, tmp_path: Path, reply: bytes, quick: None
):
    with socket.create_server(("127.0.0.1", 0)) as server:
        answered = []

        def answer() -> None:
            for _ in range(3):
                connection, _ = server.accept()
                answered.append(connection.recv(65536))
                connection.sendall(reply)
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(BundleError, match="cannot be fetched"):
            fetch(f"http://127.0.0.1:{server.getsockname()[1]}/b.tar", "0" * 64, tmp_path / "cache" / "0")
        thread.join(10)
        assert len(answered) == 3


@pytest.mark.parametrize("name", ["a", "manifest.json/x", "x" * 300, "", "a\0b"])
def test_a_tar_of_odd_names_is_refused(server: Server, small_bundle: Path, tmp_path: Path, name: str, quick: None):
    """Twice the same, a file below a file, too long, none, one that ends in the middle."""
    with tarfile.open(tmp_path / "www" / "bundle.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for _ in range(2):
            entry = tarfile.TarInfo(name)
            entry.pax_headers = {"path": name} if "\0" in name else {}
            archive.addfile(entry)
        archive.add(small_bundle, ".")
    with pytest.raises(BundleError, match="which no bundle does; make it of the bundle's folder"):
        fetched(server, small_bundle, tmp_path / "cache")


def huge(name: str, size: int) -> bytes:
    """The header of a file in a tar, whose content nobody has to send: it is refused before."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf()


@pytest.mark.parametrize(
    ("size", "sentence"), [(10**13, "more than 20 GB before manifest.json"), (10**9, "has room for 900.0 MB, the tar")]
)
def test_a_tar_of_anything_ends_before_it_fills_the_volume(
    server: Server, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, sentence: str
):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2 * 10**9, free=10**9))
    (tmp_path / "www" / "bundle.tar").write_bytes(huge("dataset.parquet", size) + bytes(1 << 20))
    with pytest.raises(BundleError, match=sentence):
        fetched(server, small_bundle, tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tokenizer.json", r"the tar's tokenizer.json has 10+ bytes, manifest.json says \d+"),
        ("manifest.sig", "has 10+ "),
    ],
)
def test_a_manifest_that_came_first_bounds_the_rest(
    server: Server, small_bundle: Path, tmp_path: Path, name: str, sentence: str
):
    with tarfile.open(tmp_path / "www" / "bundle.tar", "w") as archive:
        archive.add(small_bundle / "manifest.json", "manifest.json")
        end = archive.offset
    tar = (tmp_path / "www" / "bundle.tar").read_bytes()[:end]
    (tmp_path / "www" / "bundle.tar").write_bytes(tar + huge(name, 10**13) + bytes(1 << 20))
    with pytest.raises(BundleError, match=sentence):
        fetched(server, small_bundle, tmp_path / "cache")


def test_a_bundle_for_which_there_is_no_room_is_refused_when_its_manifest_has_come(
    server: Server, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    manifest = (small_bundle / "manifest.json").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=0, free=manifest))
    with tarfile.open(tmp_path / "www" / "bundle.tar.gz", "w:gz") as archive:
        archive.add(small_bundle / "manifest.json", "manifest.json")
    with pytest.raises(BundleError, match=r"the tar needs \d\.\d kB more; .*point BUNDLE_CACHE to a folder with room"):
        fetched(server, small_bundle, tmp_path / "cache", "bundle.tar.gz")


@pytest.mark.parametrize("first", ["manifest.json", "manifest.sha256"])
def test_a_bundle_whose_manifest_comes_first_goes_onto_a_volume_that_is_nearly_full(
    server: Server, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
):
    """A twentieth is left free by what comes before it, apart from what lies beside it."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**15, free=10**12))
    others = (path.relative_to(small_bundle).as_posix() for path in small_bundle.rglob("*") if path.is_file())
    with tarfile.open(tmp_path / "www" / "bundle.tar", "w") as archive:
        for name in dict.fromkeys((first, "manifest.json", *others)):
            archive.add(small_bundle / name, name)
    open_bundle(fetched(server, small_bundle, tmp_path / "cache")).verify()


@pytest.mark.parametrize("comes_first", [False, True])
@pytest.mark.parametrize("inside", [".", "my-bundle"])
def test_what_the_manifest_does_not_list_is_left_out(
    server: Server, small_bundle: Path, tmp_path: Path, comes_first: bool, inside: str
):
    """Wherever it comes, and though it be called as what lies beside a manifest, which none lists."""
    files = {path.relative_to(small_bundle) for path in small_bundle.rglob("*") if path.is_file()}
    (small_bundle / "manifest.sig").write_text("signed")
    beside = ("manifest.json", "manifest.sha256", "manifest.sig")
    unlisted = ["graphs/._fp32.onnx", *(f"{folder}/{name}" for folder in ("d0", "d1") for name in beside)]
    with tarfile.open(tmp_path / "www" / "bundle.tar", "w") as archive:
        for turn in ("before", "after"):
            if (turn == "before") == comes_first:
                for name in unlisted:
                    archive.addfile(tarfile.TarInfo(f"{inside}/{name}"))
            else:
                archive.add(small_bundle, inside)
    cached = fetched(server, small_bundle, tmp_path / "cache")
    found = {path.relative_to(cached) for path in cached.rglob("*") if path.is_file()}
    assert found == {*files, Path("manifest.sig")}


def test_what_a_worker_that_was_killed_left_is_removed_by_the_next(
    server: Server, small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """At once: a volume has room for one bundle, perhaps."""
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    cache, server.delay_s = tmp_path / "cache", 60
    killed(lambda: fetched(server, small_bundle, cache), when=lambda: bool(server.requests))
    (left,) = cache.glob(".*.partial-*")
    server.delay_s = 0
    folder = fetched(server, small_bundle, cache)
    assert not left.exists()
    left.mkdir()  # by one that was killed when another had fetched it already
    with open(cache / f".{folder.name}.lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        fetched(server, small_bundle, cache)
        assert left.exists()
    assert "waiting for it" not in capsys.readouterr().out
    fetched(server, small_bundle, cache)
    assert sorted(path.name for path in cache.iterdir()) == [f".{folder.name}.lock", folder.name]
    assert len(server.requests) == 2


@pytest.mark.parametrize("locks", [True, False])
def test_what_another_machine_left_is_removed_when_nobody_has_written_to_it_for_long(
    server: Server, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
):
    """Where there are no locks, that goes for this machine's too."""

    def no_locks(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if not locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    pack(small_bundle, tmp_path / "www" / "bundle.tar")
    cache, mine = tmp_path / "cache", hash_of(small_bundle)
    exported = cache / f".{'e' * 10}.partial-1-beef"  # of an export, which takes its time
    old, written, new, other = (
        cache / f".{one}.partial-{age}"
        for one, age in ((mine, "old"), (mine, "written"), (mine, "new" if locks else mark()), ("f" * 64, "old"))
    )
    for folder in (old, written, new, other, exported):
        (folder / "graphs").mkdir(parents=True)
        (folder / "graphs/weights.bin").touch()
        for path in (folder / "graphs/weights.bin", folder / "graphs", folder):
            if folder != new and path != written / "graphs/weights.bin":
                os.utime(path, (0, 0))
    fetched(server, small_bundle, cache)
    assert [folder.exists() for folder in (old, written, new, other, exported)] == [False, True, True, False, True]


def test_a_cache_that_cannot_be_written_is_named(small_bundle: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    wanted = settings(
        bundle_url="https://x.example/b.tar", bundle_sha256="0" * 64, bundle_cache=str(tmp_path / "file" / "x")
    )
    with pytest.raises(BundleError, match="point BUNDLE_CACHE to a folder"):
        bundle_folder(wanted)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"bundle_url": "https://x.example/b.tar"}, "BUNDLE_URL needs BUNDLE_SHA256"),
        ({"bundle_repo": "org/name"}, "BUNDLE_REPO needs BUNDLE_SHA256"),
        ({"bundle_url": "http://x.example/b.tar", "bundle_sha256": "0" * 64}, "set it to an https:// address"),
        ({"bundle_url": "ftp://x.example/b.tar"}, "BUNDLE_URL="),
        ({"bundle_url": "https://x.example/b.tar", "bundle_repo": "org/name"}, "are both set"),
        (
            {"bundle_url": "https://me:hunter2@x.example/b.tar", "bundle_sha256": "0" * 64},
            "BUNDLE_URL='https://***@x.example/b.tar' has a user name, which is not sent; set it to a signed address",
        ),
        *(
            (
                {"bundle_url": f"https://{address}?sig=hunter2", "bundle_sha256": "0" * 64},
                f"BUNDLE_URL='https://{address}?***' is malformed; write it in ASCII, with other characters percent-",
            )
            for address in ("[bad/b.tar", "x.example:port/b.tar", "x.example:0/b.tar", "/b.tar", "x.example/\u00e9.tar")
        ),
        ({"bundle_repo": "no-slash"}, "BUNDLE_REPO='no-slash' is not allowed"),
        ({"bundle_sha256": "abc"}, "BUNDLE_SHA256='abc' is not allowed"),
    ],
)
def test_settings_that_do_not_fit(values: dict[str, str], sentence: str, tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        bundle_folder(settings(**values, bundle_cache=str(tmp_path)))
    assert sentence in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.fixture
def no_hub_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


def hub_cache(cache: Path, bundle: Path, revision: str = "main") -> Path:
    """As a download of org/name leaves it: files are links into blobs/."""
    commit = "c" * 40
    repo = cache / "models--org--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / revision).write_text(commit)
    (repo / "blobs").mkdir()
    for number, file in enumerate(sorted(p for p in bundle.rglob("*") if p.is_file())):
        (repo / "blobs" / str(number)).write_bytes(file.read_bytes())
        link = repo / "snapshots" / commit / file.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(repo / "blobs" / str(number))
    return repo / "snapshots" / commit


@pytest.mark.parametrize(
    ("place", "environ"),
    [
        ("volume/huggingface-cache/hub", {}),
        ("home/.cache/huggingface/hub", {"HOME": "{}/home"}),
        ("hf/hub", {"HF_HOME": "{}/hf"}),
        ("hub", {"HF_HUB_CACHE": "{}/hub"}),
    ],
)
@pytest.mark.parametrize("revision", ["main", "v1", "c" * 40])
@pytest.mark.usefixtures("no_hub_cache")
def test_a_bundle_in_the_hubs_cache(
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    environ: dict[str, str],
    revision: str,
):
    snapshot = hub_cache(tmp_path / place, small_bundle, "v1" if revision == "v1" else "main")
    for name, value in environ.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    repo = "org/name" if revision == "main" else f"org/name@{revision}"
    wanted = settings(bundle_repo=repo, bundle_sha256=hash_of(small_bundle))
    folder = bundle_folder(wanted, tmp_path / "volume")
    assert folder == snapshot
    open_bundle(folder, sha256=wanted.bundle_sha256).verify()


@pytest.mark.usefixtures("no_hub_cache")
def test_the_hubs_cache_is_where_its_own_library_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    environs = [
        {},
        {"HF_HOME": "~/hf"},
        {"HF_HOME": "$PLACE/hf"},
        {"HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg"},
        {"XDG_CACHE_HOME": "/xdg"},
        {"XDG_CACHE_HOME": "~/xdg"},
        {"HF_HUB_CACHE": "${PLACE}/$UNKNOWN/hub", "HF_HOME": "/hf"},
        {"HUGGINGFACE_HUB_CACHE": "~/older"},
        {"HUGGINGFACE_HUB_CACHE": "/older", "HF_HUB_CACHE": "/newer"},
    ]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "/place")
    for environ in environs:
        with monkeypatch.context() as patched:
            for name, value in environ.items():
                patched.setenv(name, value)
            theirs = runpy.run_path(str(constants.__file__))["HF_HUB_CACHE"]
            with pytest.raises(BundleError) as refused:
                bundle_folder(settings(bundle_repo="org/name", bundle_sha256="0" * 64), Path("/no-volume"))
        assert f"is not in the Hub's cache (/no-volume/huggingface-cache/hub, {theirs});" in str(refused.value)


def test_a_repository_that_is_not_cached_is_not_downloaded(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    wanted = settings(bundle_repo="org/name", bundle_sha256=hash_of(small_bundle))
    with pytest.raises(BundleError, match="is not in the Hub's cache"):
        bundle_folder(wanted, tmp_path)


def test_a_repository_that_cannot_be_looked_up_says_why(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A name that is too long stands for a volume of another user, which root would read all the same."""
    hub_cache(tmp_path / "hub", small_bundle)
    wanted = settings(bundle_repo=f"org/name@{'x' * 300}", bundle_sha256=hash_of(small_bundle))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(BundleError, match=r"cannot be looked up in .*/hub \(File name too long\)"):
        bundle_folder(wanted, tmp_path)


def test_a_branch_that_is_no_text_is_a_commit_that_is_not_there(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    snapshot = hub_cache(tmp_path / "hub", small_bundle)
    (snapshot.parents[1] / "refs" / "main").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    wanted = settings(bundle_repo="org/name", bundle_sha256=hash_of(small_bundle))
    with pytest.raises(BundleError, match="is not in the Hub's cache"):
        bundle_folder(wanted, tmp_path)


def test_a_folder_may_be_pinned_too(small_bundle: Path):
    from handler.boot import boot
    from handler.startup.timeline import Timeline

    with pytest.raises(BundleError, match="BUNDLE_SHA256 names"):
        boot(settings(bundle=str(small_bundle), bundle_sha256="0" * 64), Timeline())
