"""What is waited for in the end, and for how long."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from engine.config import Settings
from handler.processes import engine_process, fork
from handler.startup.timeline import Timeline


@pytest.fixture
def child():
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def test_a_child_that_does_not_end_is_killed(child: int):
    assert fork.wait_for(child, 0.05) == 0
    with pytest.raises(ChildProcessError):
        os.waitpid(child, 0)


def test_a_child_that_was_killed_is_told(child: int):
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(fork.wait_for(child, 10)) == signal.SIGKILL


def test_a_child_that_cannot_be_killed_is_left(child: int, monkeypatch: pytest.MonkeyPatch):
    """One that waits for a driver; nothing that a test could make is so, therefore the signal is not sent."""
    monkeypatch.setattr(fork, "_KILL_S", 0.05)
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    begin = time.monotonic()
    assert fork.wait_for(child, 0.05) == 0
    assert time.monotonic() - begin < 5


def test_a_child_whose_end_nobody_keeps_has_ended():
    """SIGCHLD may come ignored from whoever started the worker."""
    kept = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = subprocess.Popen(["true"])
        assert fork.wait_for(process.pid, 10) == 0
        process.wait()
    finally:
        signal.signal(signal.SIGCHLD, kept)


def test_what_nobody_hears_any_more_is_no_second_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_process, "end_with", lambda end, grace_s: None)  # which would end the tests
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        engine_process.serve(theirs, Settings(bundle=tmp_path), Timeline())
