"""Processes of another user or that are killed, and the end of those that a test did not start itself."""

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest


def wait_until_dead(pid: int) -> None:
    """Fail the test when the process still runs after 10 s; one that its new parent has not collected yet is dead."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} still runs")


def as_another_user(work: Callable[[], object]) -> object:
    """What `work` returns to an ordinary user: root may write anywhere."""

    def child(answer: Connection) -> None:
        if os.geteuid() == 0:
            os.setgid(10001)
            os.setuid(10001)
        try:
            answer.send(work())
        except Exception as error:
            answer.send(error)

    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=child, args=(theirs,))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def killed(work: Callable[[], object], when: Callable[[], bool] = lambda: False) -> None:
    """Do `work` in a process that is killed `when` that is so, or by itself."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    while process.is_alive() and not when():
        time.sleep(0.01)
    process.kill()
    process.join()
