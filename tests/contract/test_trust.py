"""Whom the worker trusts over TLS: those whom the machine trusts, though it does not read them all at boot.

RunPod's API, pings, BUNDLE_URL and the URLs in jobs go by one rule, engine/fetching/authorities.py.
"""

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.emulator import EmulatorThread
from benchmarks.emulator.far import TlsFront
from benchmarks.worker_process import WorkerProcess
from tests.tls_server import certificate, searchable

LOAD = (
    "from handler.protocol import sdk, trust; sdk.load()\n"
    "import asyncio, os, ssl; from handler.protocol.connections import Client\n"
)
ASK = "async def ask(url):\n    return (await Client({}).get(url)).status\n"


EACH = (
    LOAD
    + ASK
    + """
import certifi, sys
import requests.adapters, requests.utils
from pathlib import Path
from engine.config import Limits
from engine.fetching.fetch import Network, fetch
from handler.startup.fetch_bundle import fetch as fetch_bundle

url, cache, pem, machine = sys.argv[1:]
certifi.where = lambda: pem
requests.adapters.DEFAULT_CA_BUNDLE_PATH = requests.utils.DEFAULT_CA_BUNDLE_PATH = pem
paths = ssl.DefaultVerifyPaths(None, None, "SSL_CERT_FILE", machine, "SSL_CERT_DIR", "/none")
ssl.get_default_verify_paths = lambda: paths
def ping():
    session = sdk.heartbeat()()._session
    session.get_adapter(url).max_retries = requests.adapters.Retry(0)  # which take seconds
    print(session.get(url).status_code)
network = Network(lambda host, port: ["127.0.0.1"], lambda address: True)
for use in (
    lambda: print(asyncio.run(ask(url))),
    lambda: fetch_bundle(url, "0" * 64, Path(cache) / "0"),
    lambda: fetch(url, Limits(fetch_hosts=(url.removeprefix("https://"),)), network),
    ping,
):
    try:
        use()
    except Exception as error:  # the server has nothing at that path
        print("404" if "404" in str(error) else "unknown" if "certificate" in str(error) else repr(error))
"""
)
"""What each of four uses makes of a server."""


@pytest.fixture
def front(tmp_path: Path) -> Iterator[TlsFront]:
    with EmulatorThread() as emulator, TlsFront(tmp_path, int(emulator.url.rpartition(":")[2])) as running:
        yield running


def run(code: str, *arguments: str, **env: str) -> list[str]:
    """What `code` prints where nothing but `env` names authorities."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SSL_CERT_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env={**clean, **env}
    ).stdout.split()


def test_none_is_read_before_the_first_connection(tmp_path: Path):
    code = (
        "import ssl\n"
        "def refuse(*arguments, **options): raise SystemExit('read')\n"
        "ssl.SSLContext.load_verify_locations = ssl.SSLContext.set_default_verify_paths = refuse\n"
        + LOAD
        + "from handler import front; print('none')"
    )
    assert run(code, SSL_CERT_FILE=str(certificate(tmp_path))) == ["none"]


@pytest.mark.parametrize(
    ("machine", "file", "folder", "each"),
    [
        ("other.pem", "own", None, "404"),
        ("other.pem", None, "own", "404"),
        ("other.pem", None, None, "unknown"),
        ("none", "", "", "404"),  # certifi's count, and what is empty names nothing
        ("none", None, "other", "unknown"),  # who names authorities means no others
        ("none", "none", None, "unknown"),
    ],
)
def test_one_rule_for_each_use(
    front: TlsFront, tmp_path: Path, machine: str, file: str | None, folder: str | None, each: str
):
    """RunPod's API, BUNDLE_URL, a job's URL, pings; certifi has our authority, which counts on a bare machine only."""
    places = {
        "own": {"SSL_CERT_FILE": front.pem, "SSL_CERT_DIR": searchable(tmp_path / "authorities", front.pem)},
        "other": {"SSL_CERT_DIR": searchable(tmp_path / "others", certificate(tmp_path, "other"))},
        "none": {"SSL_CERT_FILE": tmp_path / "none"},
    }
    named = {"SSL_CERT_FILE": file, "SSL_CERT_DIR": folder}
    env = {name: str(places[key][name]) if key else "" for name, key in named.items() if key is not None}
    env |= {"RUNPOD_WEBHOOK_PING": front.url, "REQUESTS_CA_BUNDLE": str(front.pem)}
    said = run(EACH, front.url, str(tmp_path / "cache"), str(front.pem), str(tmp_path / machine), **env)
    assert [line for line in said if line in ("404", "unknown")] == [each] * 4


@pytest.mark.parametrize("way", ["file", "folder"])
def test_an_authority_of_the_machine_is_trusted(front: TlsFront, tmp_path: Path, way: str):
    code = LOAD + ASK + "import sys; print(asyncio.run(ask(sys.argv[1])), len(trust._searching))"
    folder = searchable(tmp_path / "authorities", front.pem)
    env = {"SSL_CERT_FILE": str(front.pem)} if way == "file" else {"SSL_CERT_DIR": str(folder)}
    assert run(code, front.url, **env) == ["404", "0" if way == "file" else "1"]


def test_others_are_not(front: TlsFront, tmp_path: Path):
    code = (
        LOAD + ASK + "import sys\n"
        "for _ in range(2):\n"
        "    try: asyncio.run(ask(sys.argv[1]))\n"
        "    except ssl.SSLCertVerificationError: print('refused')\n"
        "    trust.read_all()"
    )
    folder = searchable(tmp_path / "authorities", certificate(tmp_path, "other"))
    for env in ({"SSL_CERT_DIR": str(folder)}, {"SSL_CERT_FILE": str(tmp_path / "other.pem")}):
        assert run(code, front.url, **env) == ["refused", "refused"]


def test_what_helps_is_said_once(front: TlsFront, tmp_path: Path):
    code = (
        LOAD + ASK + "import sys\n"
        "for _ in range(3):\n"
        "    try: asyncio.run(ask(sys.argv[1]))\n"
        "    except ssl.SSLCertVerificationError as error: print(trust.advice(error))\n"
        "    trust.read_all()"
    )
    folder = searchable(tmp_path / "authorities", certificate(tmp_path, "other"))
    said = " ".join(run(code, front.url, SSL_CERT_DIR=str(folder)))
    assert f"and {folder} (SSL_CERT_DIR); install ca-certificates" in said
    assert said.count("SSL_CERT_DIR") == 1


def test_a_name_that_the_certificate_does_not_carry_is_refused(front: TlsFront, tmp_path: Path):
    code = (
        LOAD + ASK + "import sys\n"
        "try: asyncio.run(ask(sys.argv[1].replace('localhost', '127.0.0.1')))\n"
        "except ssl.SSLCertVerificationError as error: print('mismatch' in str(error))"
    )
    folder = searchable(tmp_path / "authorities", front.pem)
    assert run(code, front.url, SSL_CERT_DIR=str(folder)) == ["True"]


@pytest.mark.parametrize("way", ["a file", "a folder", "a file beside a folder without it"])
def test_a_worker_answers_over_tls(way: str, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The third is a machine whose bundle of authorities was added to and not the folder beside it."""
    with EmulatorThread() as emulator, TlsFront(tmp_path, int(emulator.url.rpartition(":")[2])) as front:
        folder = searchable(tmp_path / "authorities", front.pem if way == "a folder" else certificate(tmp_path, "o"))
        named = {
            "a file": {"SSL_CERT_FILE": str(front.pem)},
            "a folder": {"SSL_CERT_DIR": str(folder)},
            # As if this file were OpenSSL's own default, which the environment does not name.
            "a file beside a folder without it": {"SSL_CERT_DIR": str(folder), "LATER": str(front.pem)},
        }[way]
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            monkeypatch.delenv(name, raising=False)
        env = {name: value.replace(emulator.url, front.url) for name, value in emulator.worker_env().items()}
        env |= {"BUNDLE": str(small_bundle), **named}
        code = (
            "import os, runpy, handler.protocol.trust\n"
            "kept = handler.protocol.trust.read_all\n"
            "def read_all():\n"
            "    if 'LATER' in os.environ: os.environ['SSL_CERT_FILE'] = os.environ['LATER']\n"
            "    kept()\n"
            "handler.protocol.trust.read_all = read_all\n"
            "runpy.run_module('handler', run_name='__main__', alter_sys=True)"
        )
        with WorkerProcess(emulator, [sys.executable, "-c", code], env):
            record = emulator.wait(emulator.submit({"text": "a"}))
            deadline = time.monotonic() + 20
            while not emulator.workers["worker-1"].ping_count and time.monotonic() < deadline:
                time.sleep(0.05)
    assert record.status == "COMPLETED"
    assert emulator.workers["worker-1"].ping_count
    assert ssl.OPENSSL_VERSION_INFO >= (1, 1)  # whose folders are filed by the hash that `searchable` computes
