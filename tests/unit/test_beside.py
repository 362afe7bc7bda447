"""What is done beside a boot's main thread."""

import os
import threading

import pytest

from engine.errors import WorkerFault
from handler.startup.beside import Beside


def test_what_it_returns_or_raises_is_told_as_often_as_asked():
    fine, broken = Beside(lambda: 7), Beside(lambda: 1 // 0)
    for _ in range(2):
        assert fine.result() == 7
        with pytest.raises(ZeroDivisionError):
            broken.result()


def test_niceness_is_that_of_the_thread_alone():
    before = os.getpriority(os.PRIO_PROCESS, 0)

    def mine() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert Beside(mine, niceness=before + 3).result() == before + 3
    assert Beside(mine).result() == os.getpriority(os.PRIO_PROCESS, 0) == before


def test_a_machine_that_refuses_it_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", refuse)
    assert Beside(lambda: 7, niceness=3).result() == 7


def test_a_machine_without_a_further_thread_is_told(monkeypatch: pytest.MonkeyPatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")  # of a limit that root is not under

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(WorkerFault, match=r"can't start new thread; raise the limit of processes and threads"):
        Beside(lambda: 7)
