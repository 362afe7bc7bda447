"""The process that hashes a bundle while another one boots: what it tells, and what becomes of it."""

import fcntl
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.bundle import Bundle, open_bundle, write_manifest
from engine.errors import BundleError
from engine.files import digest
from export.bundle_folder import changed_bundle_folder
from handler.startup.verification import Verification

ENDLESS = """
import os, sys, time
from pathlib import Path
from engine.bundle import Bundle, open_bundle
from handler.startup.verification import Verification

Bundle.verify_common = lambda self: time.sleep(600)
verification = Verification(open_bundle(Path(sys.argv[1])))
print(verification._pid, flush=True)
os.kill(os.getpid(), 9)
"""


WEIGHTS = "graphs/model/weights.bin"
PLAN = "graphs/model/plans/sm_89.plan"


@pytest.fixture
def bundle(small_bundle: Path) -> Path:
    """With weights, and a plan, in files of their own."""
    for name in (WEIGHTS, PLAN):
        (small_bundle / name).parent.mkdir(exist_ok=True)
        (small_bundle / name).write_bytes(bytes(4096))
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    return small_bundle


def begun(bundle: Path, *asked: str) -> Verification:
    verification = Verification(open_bundle(bundle))
    verification.ask(asked)
    return verification


def slowly(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """What is asked for takes so long; what every boot reads does not."""
    monkeypatch.setattr(Bundle, "verify", lambda self, names: time.sleep(seconds))
    monkeypatch.setattr(Bundle, "verify_common", lambda self: None)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content if how == "changed" else content[:-1])


def test_it_tells_how_long_it_took(bundle: Path):
    before = set(os.listdir("/proc/self/fd"))
    verification = begun(bundle)
    pid = verification._pid
    verification.ask([WEIGHTS, PLAN])
    verification.ask([WEIGHTS])
    assert verification.result() > 0
    with pytest.raises(ChildProcessError):  # waited for
        os.waitpid(pid, 0)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_where_the_kernel_reaps_children(bundle: Path):
    """As whoever started the worker may have asked it to."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert begun(bundle, WEIGHTS).result() > 0
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("name", [WEIGHTS, PLAN])
@pytest.mark.parametrize("has_process", [True, False])
def test_what_nobody_asks_for_is_not_read(bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str, has_process: bool):
    if not has_process:
        monkeypatch.setattr(os, "fork", refuse_process)
    damage(bundle / name, "changed")
    begun(bundle, *{WEIGHTS, PLAN} - {name}).result()
    verification = begun(bundle, WEIGHTS, PLAN)
    for _ in range(2):
        with pytest.raises(BundleError, match=f"{name} does not match the SHA-256"):
            verification.result()


@pytest.mark.parametrize("how", ["another link", "another folder", "written to"])
def test_a_bundle_that_is_exchanged_while_others_open_its_files_counts_as_damaged(
    bundle: Path, tmp_path: Path, how: str
):
    """The next version may have the same files but for what was opened before, or after, they were hashed."""
    served, copy = tmp_path / "current", tmp_path / "next"
    served.symlink_to(bundle)
    shutil.copytree(bundle, copy)  # with its times
    verification = begun(served, WEIGHTS, PLAN)
    verification.wait()
    if how == "another link":
        served.unlink()
        served.symlink_to(copy)
    elif how == "another folder":
        shutil.rmtree(bundle)  # so that its files' numbers are free
        copy.rename(bundle)
    else:
        (bundle / WEIGHTS).write_bytes(bytes(4096))
    with pytest.raises(BundleError, match=r"current/.* was exchanged while the worker started; start it again$"):
        verification.result()


def test_what_lies_beside_a_bundles_files_may_change_meanwhile(bundle: Path):
    """As when plans are added: the other files are linked. What other engines open may even be exchanged."""
    verification = begun(bundle, WEIGHTS)
    (bundle / PLAN).touch()
    with changed_bundle_folder(bundle) as folder:
        (folder / "graphs/model/plans/new.plan").write_bytes(b"new")
        write_manifest(folder, open_bundle(folder).manifest)
    verification.result()


def test_an_engine_may_load_while_weights_are_read(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    slowly(monkeypatch, 0.3)
    verification = begun(bundle, WEIGHTS)
    verification.need([WEIGHTS])
    verification.need([])
    assert list(verification._pending) == [[WEIGHTS]]
    assert not verification.delays
    assert verification.result() >= 300


def test_and_no_plan_may(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    slowly(monkeypatch, 0.3)
    verification = begun(bundle)
    verification.wait()
    verification.ask([WEIGHTS])
    assert not verification.delays
    verification.ask([PLAN])
    assert verification.delays
    verification.need([PLAN])
    assert not verification._pending
    assert verification.result() >= 600


def test_what_takes_long_is_said_again_whenever_it_took_twice_as_long(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    now = [0.0]
    monkeypatch.setattr("handler.log._LONG_S", 0.1)
    monkeypatch.setattr("handler.log.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(sys, "stdout", os.fdopen(1, "w", closefd=False))  # the other process closes all above 2
    (bundle / WEIGHTS).write_bytes(bytes(800_000))  # four reads, of 262144 bytes
    write_manifest(bundle, open_bundle(bundle).manifest)
    sha256 = digest.sha256

    def slow(path: Path, told: Any) -> str:
        def told_late(size: int) -> None:
            now[0] += 0.11 if path.name == "weights.bin" else 0
            told(size)

        return sha256(path, told_late)

    monkeypatch.setattr(digest, "sha256", slow)
    begun(bundle, WEIGHTS).result()
    lines = [line.partition(' {"seconds"')[0] for line in capfd.readouterr().out.splitlines()]
    said = f"INFO  | still reading {WEIGHTS}, to compare its SHA-256:"
    assert lines == [f"{said} {done} MB of 0.8 MB" for done in ("0.3", "0.5", "0.8")]


@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
@pytest.mark.parametrize("name", ["graphs/model/fp32.onnx", WEIGHTS, PLAN])
def test_it_says_what_verify_says(bundle: Path, how: str, name: str):
    damage(bundle / name, how)
    verification = begun(bundle)
    # Weights that were cut may not be mapped: to read behind a file's end kills a process.
    if name.endswith("onnx") or how != "changed":
        with pytest.raises(BundleError) as told:
            verification.wait()
    else:
        verification.need([name] if name == WEIGHTS else [])
        verification.ask([name])
        with pytest.raises(BundleError) as told:
            verification.result()
    with pytest.raises(BundleError) as said:
        open_bundle(bundle).verify()
    assert str(told.value) == str(said.value)
    with pytest.raises(BundleError, match=re.escape(str(said.value))):
        verification.result()


@pytest.mark.parametrize("part", ["verify_common", "verify"])
def test_what_a_killed_process_did_not_tell_is_found_out(bundle: Path, monkeypatch: pytest.MonkeyPatch, part: str):
    here, verify = os.getpid(), getattr(Bundle, part)

    def slow(self: Bundle, *names: Any) -> None:
        if os.getpid() != here:
            time.sleep(600)
        verify(self, *names)

    monkeypatch.setattr(Bundle, part, slow)
    damage(bundle / WEIGHTS, "changed")
    verification = begun(bundle)
    os.kill(verification._pid, signal.SIGKILL)
    verification.wait()
    verification.need([WEIGHTS])
    with pytest.raises(BundleError, match="does not match the SHA-256"):
        verification.result()


def test_nor_one_that_is_asked_after_its_end(bundle: Path):
    damage(bundle / WEIGHTS, "changed")
    verification = begun(bundle)
    verification.wait()
    os.kill(verification._pid, signal.SIGKILL)
    os.waitid(os.P_PID, verification._pid, os.WEXITED | os.WNOWAIT)
    verification.ask([PLAN])
    verification.ask([WEIGHTS])
    with pytest.raises(BundleError, match="does not match the SHA-256"):
        verification.result()


def refuse_process() -> int:
    raise BlockingIOError(11, "Resource temporarily unavailable")


def test_without_a_process_to_be_had_files_are_compared_all_the_same(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fork", refuse_process)
    verification = begun(bundle, PLAN)
    assert not verification.delays
    assert verification.result() > 0
    next(bundle.rglob("*.onnx")).unlink()
    with pytest.raises(BundleError, match="is missing"):
        begun(bundle).wait()


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
    slowly(monkeypatch, 600)
    ours, theirs = socket.socketpair()
    verification = begun(bundle, WEIGHTS)
    theirs.close()
    ours.settimeout(30)
    assert ours.recv(1) == b""
    ours.close()
    os.kill(verification._pid, signal.SIGKILL)
    monkeypatch.undo()
    verification.result()


def test_a_descriptor_above_the_limit_is_closed_as_well(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """And one that select() could not wait for is waited for."""
    slowly(monkeypatch, 600)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] <= 1030:
        pytest.skip(f"needs more than 1030 open files, and the hard limit (ulimit -Hn) is {limits[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    ours, theirs = socket.socketpair()
    high = socket.socket(fileno=fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 1030))
    theirs.close()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, limits[1]))
        verification = begun(bundle, PLAN)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    verification._end, low = high, verification._end
    assert verification.delays
    high.close()
    ours.settimeout(5)
    assert ours.recv(1) == b""
    ours.close()
    verification._end = low
    os.kill(verification._pid, signal.SIGKILL)
    monkeypatch.undo()
    verification.result()


def test_a_terminal_does_not_interrupt_it(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hashing = tmp_path / "hashing"

    def slow(self: Bundle, names: Any) -> None:
        hashing.touch()
        time.sleep(0.3)

    monkeypatch.setattr(Bundle, "verify", slow)
    monkeypatch.setattr(Bundle, "verify_common", lambda self: None)
    verification = begun(bundle, WEIGHTS)
    while not hashing.exists():
        time.sleep(0.001)
    os.kill(verification._pid, signal.SIGINT)
    assert verification.result() >= 300


def test_one_whose_worker_was_killed_a_moment_ago_ends_in_peace(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handler.startup.verification.end_with", lambda end: None)  # which has not noticed yet
    slowly(monkeypatch, 0.2)
    verification = begun(bundle, WEIGHTS)
    verification._end.close()
    assert os.waitpid(verification._pid, 0)[1] == 0


def test_without_a_thread_to_be_had_files_are_compared_all_the_same(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert begun(bundle, WEIGHTS).result() > 0
    next(bundle.rglob("*.onnx")).unlink()
    with pytest.raises(BundleError, match="is missing"):
        begun(bundle).wait()
