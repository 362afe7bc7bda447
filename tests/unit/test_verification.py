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

from engine.bundle import Bundle, open_bundle, write_manifest
from engine.errors import BundleError
from handler.verification import Verification

ENDLESS = """
import os, sys, time
from pathlib import Path
from engine.bundle import Bundle, open_bundle
from handler.verification import Verification

Bundle.verify_weights = lambda self: time.sleep(600)
verification = Verification(open_bundle(Path(sys.argv[1])))
print(verification._pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def bundle(small_bundle: Path) -> Path:
    """With weights in a file of their own."""
    (small_bundle / "graphs/model/weights.bin").write_bytes(bytes(4096))
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    return small_bundle


def test_it_tells_how_long_it_took(bundle: Path):
    verification = Verification(open_bundle(bundle))
    pid = verification._pid
    assert verification.has_passed_all_but_weights()
    assert verification.result() > 0
    with pytest.raises(ChildProcessError):  # waited for
        os.waitpid(pid, 0)


def test_an_engine_may_load_while_weights_are_read(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Bundle, "verify_weights", lambda self: time.sleep(0.3))
    verification = Verification(open_bundle(bundle))
    while not verification.is_at_weights:
        time.sleep(0.001)
    assert verification.has_passed_all_but_weights()
    assert not verification.is_at_weights
    assert verification.result() >= 300


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
@pytest.mark.parametrize("kind", ["onnx", "bin"])
def test_it_says_what_verify_says(bundle: Path, damage: str, kind: str):
    file = next(bundle.rglob(f"*.{kind}"))
    if damage == "gone":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content if damage == "changed" else content[:-1])
    verification = Verification(open_bundle(bundle))
    # Weights that were cut may not be mapped: to read behind a file's end kills a process.
    assert verification.has_passed_all_but_weights() == (kind == "bin" and damage == "changed")
    with pytest.raises(BundleError) as told:
        verification.result()
    with pytest.raises(BundleError) as said:
        open_bundle(bundle).verify()
    assert str(told.value) == str(said.value)


@pytest.mark.parametrize("part", ["verify_all_but_weights", "verify_weights"])
def test_what_a_killed_process_did_not_tell_is_found_out(bundle: Path, monkeypatch: pytest.MonkeyPatch, part: str):
    here, verify = os.getpid(), getattr(Bundle, part)

    def slow(self: Bundle) -> None:
        if os.getpid() != here:
            time.sleep(600)
        verify(self)

    monkeypatch.setattr(Bundle, part, slow)
    next(bundle.rglob("*.bin")).write_bytes(b"changed".ljust(4096))
    verification = Verification(open_bundle(bundle))
    if part == "verify_weights":
        assert verification.has_passed_all_but_weights()
    assert not verification.is_at_weights
    os.kill(verification._pid, signal.SIGKILL)
    assert part == "verify_weights" or verification.has_passed_all_but_weights()
    with pytest.raises(BundleError, match="does not match the SHA-256"):
        verification.result()


def test_without_a_process_to_be_had_files_are_compared_all_the_same(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    verification = Verification(open_bundle(bundle))
    assert not verification.is_at_weights
    assert verification.has_passed_all_but_weights()
    assert verification.result() > 0
    next(bundle.rglob("*.onnx")).unlink()
    verification = Verification(open_bundle(bundle))
    assert not verification.has_passed_all_but_weights()
    with pytest.raises(BundleError, match="is missing"):
        verification.result()


def test_it_ends_with_the_process_that_began_it(bundle: Path):
    begun = subprocess.run([sys.executable, "-c", ENDLESS, str(bundle)], stdout=subprocess.PIPE, text=True, timeout=60)
    pid = int(begun.stdout)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():  # a zombie's is empty
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_keeps_nobody_from_hearing_the_end_of_the_process_that_began_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Bundle, "verify_weights", lambda self: time.sleep(600))
    ours, theirs = socket.socketpair()
    verification = Verification(open_bundle(bundle))
    theirs.close()
    ours.settimeout(30)
    assert ours.recv(1) == b""
    ours.close()
    assert verification.has_passed_all_but_weights()
    os.kill(verification._pid, signal.SIGKILL)
    monkeypatch.undo()
    verification.result()


def test_a_descriptor_above_the_limit_is_closed_as_well(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """And one that select() could not wait for is waited for."""
    monkeypatch.setattr(Bundle, "verify_weights", lambda self: time.sleep(600))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    ours, theirs = socket.socketpair()
    high = socket.socket(fileno=fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 1030))
    theirs.close()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, limits[1]))
        verification = Verification(open_bundle(bundle))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    verification._end, low = high, verification._end
    assert not verification.is_at_weights
    high.close()
    ours.settimeout(5)
    assert ours.recv(1) == b""
    ours.close()
    verification._end = low
    assert verification.has_passed_all_but_weights()
    os.kill(verification._pid, signal.SIGKILL)
    monkeypatch.undo()
    verification.result()


def test_a_terminal_does_not_interrupt_it(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun, here = tmp_path / "begun", os.getpid()

    def slow(self: Bundle) -> None:
        assert os.getpid() != here
        begun.touch()
        time.sleep(0.3)

    monkeypatch.setattr(Bundle, "verify_weights", slow)
    verification = Verification(open_bundle(bundle))
    while not begun.exists():
        time.sleep(0.001)
    os.kill(verification._pid, signal.SIGINT)
    assert verification.has_passed_all_but_weights()
    assert verification.result() >= 300


def test_one_whose_worker_was_killed_a_moment_ago_ends_in_peace(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handler.verification.end_with", lambda end: None)  # which has not noticed yet
    monkeypatch.setattr(Bundle, "verify_weights", lambda self: time.sleep(0.2))
    verification = Verification(open_bundle(bundle))
    verification._end.close()
    assert os.waitpid(verification._pid, 0)[1] == 0


def test_without_a_thread_to_be_had_files_are_compared_all_the_same(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    verification = Verification(open_bundle(bundle))
    assert verification.has_passed_all_but_weights()
    assert verification.result() > 0
    next(bundle.rglob("*.onnx")).unlink()
    verification = Verification(open_bundle(bundle))
    assert not verification.has_passed_all_but_weights()
    with pytest.raises(BundleError, match="is missing"):
        verification.result()
