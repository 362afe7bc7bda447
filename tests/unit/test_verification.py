"""The process that hashes a bundle while another one boots: what it tells, and what becomes of it."""

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from engine.bundle import Bundle, open_bundle
from engine.errors import BundleError
from handler.verification import Verification

ENDLESS = """
import os, sys, time
from pathlib import Path
from engine.bundle import Bundle, open_bundle
from handler.verification import Verification

Bundle.verify = lambda self: time.sleep(600)
verification = Verification(open_bundle(Path(sys.argv[1])))
print(verification._pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_it_tells_how_long_it_took(small_bundle: Path):
    verification = Verification(open_bundle(small_bundle))
    assert verification.result() > 0
    with pytest.raises(ChildProcessError):  # waited for
        os.waitpid(verification._pid, 0)


def test_it_is_over_once_the_files_were_read(small_bundle: Path):
    verification = Verification(open_bundle(small_bundle))
    while not verification.is_over:
        time.sleep(0.001)
    verification.result()


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_it_says_what_verify_says(small_bundle: Path, damage: str):
    weights = next(small_bundle.rglob("*.onnx"))
    if damage == "gone":
        weights.unlink()
    else:
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content if damage == "changed" else content[:-1])
    with pytest.raises(BundleError) as told:
        Verification(open_bundle(small_bundle)).result()
    with pytest.raises(BundleError) as said:
        open_bundle(small_bundle).verify()
    assert str(told.value) == str(said.value)


def test_what_a_killed_process_did_not_tell_is_found_out(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    here, verify = os.getpid(), Bundle.verify
    verified = []

    def slow(bundle: Bundle) -> None:
        if os.getpid() != here:
            time.sleep(600)
        verified.append(bundle)
        verify(bundle)

    monkeypatch.setattr(Bundle, "verify", slow)
    bundle = open_bundle(small_bundle)
    verification = Verification(bundle)
    assert not verification.is_over
    os.kill(verification._pid, signal.SIGKILL)
    assert verification.result() > 0
    assert verified == [bundle]


def test_without_a_process_to_be_had_files_are_compared_all_the_same(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    verification = Verification(open_bundle(small_bundle))
    assert not verification.is_over
    assert verification.result() > 0
    next(small_bundle.rglob("*.onnx")).unlink()
    with pytest.raises(BundleError, match="is missing"):
        Verification(open_bundle(small_bundle)).result()


def test_it_ends_with_the_process_that_began_it(small_bundle: Path):
    begun = subprocess.run(
        [sys.executable, "-c", ENDLESS, str(small_bundle)], stdout=subprocess.PIPE, text=True, timeout=60
    )
    pid = int(begun.stdout)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():  # a zombie's is empty
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_keeps_nobody_from_hearing_the_end_of_the_process_that_began_it(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Bundle, "verify", lambda self: time.sleep(600))
    ours, theirs = socket.socketpair()
    verification = Verification(open_bundle(small_bundle))
    theirs.close()
    ours.settimeout(30)
    assert ours.recv(1) == b""
    ours.close()
    os.kill(verification._pid, signal.SIGKILL)
    monkeypatch.undo()
    verification.result()


def test_a_descriptor_above_the_limit_is_closed_as_well(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """And one that select() could not wait for is waited for."""
    monkeypatch.setattr(Bundle, "verify", lambda self: time.sleep(600))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    ours, theirs = socket.socketpair()
    high = socket.socket(fileno=fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 1030))
    theirs.close()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, limits[1]))
        verification = Verification(open_bundle(small_bundle))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    verification._end, low = high, verification._end
    assert not verification.is_over
    high.close()
    ours.settimeout(5)
    assert ours.recv(1) == b""
    ours.close()
    verification._end = low
    os.kill(verification._pid, signal.SIGKILL)
    monkeypatch.undo()
    verification.result()


def test_a_terminal_does_not_interrupt_it(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun, here = tmp_path / "begun", os.getpid()

    def slow(bundle: Bundle) -> None:
        assert os.getpid() != here
        begun.touch()
        time.sleep(0.3)

    monkeypatch.setattr(Bundle, "verify", slow)
    verification = Verification(open_bundle(small_bundle))
    while not begun.exists():
        time.sleep(0.001)
    os.kill(verification._pid, signal.SIGINT)
    assert verification.result() >= 300


def test_one_whose_worker_was_killed_a_moment_ago_ends_in_peace(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handler.verification.end_with", lambda end: None)  # which has not noticed yet
    monkeypatch.setattr(Bundle, "verify", lambda self: time.sleep(0.2))
    verification = Verification(open_bundle(small_bundle))
    verification._end.close()
    assert os.waitpid(verification._pid, 0)[1] == 0


def test_without_a_thread_to_be_had_files_are_compared_all_the_same(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    verification = Verification(open_bundle(small_bundle))
    assert verification.result() > 0
    next(small_bundle.rglob("*.onnx")).unlink()
    with pytest.raises(BundleError, match="is missing"):
        Verification(open_bundle(small_bundle)).result()
