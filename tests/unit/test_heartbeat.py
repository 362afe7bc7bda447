"""The heartbeat outlives what the SDK's loop does not."""

import sys
import threading
import time
from pathlib import Path

import pytest
from runpod.serverless.modules import rp_ping

from benchmarks.emulator import EmulatorThread
from benchmarks.worker_process import WorkerProcess
from handler.heartbeat import Heartbeat


def test_it_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch):
    """The SDK's loop ends on everything but requests' errors: a broken pipe of its log, half of a surrogate pair."""
    monkeypatch.setattr("handler.heartbeat._PAUSE_S", 0.01)
    monkeypatch.setenv("RUNPOD_WEBHOOK_PING", "http://127.0.0.1:9/ping")
    pings, thrice = 0, threading.Event()

    def send(self: object) -> None:
        nonlocal pings
        pings += 1
        if pings > 2:
            thrice.set()
            threading.Event().wait()  # a daemon, as the thread is
        raise BrokenPipeError

    monkeypatch.setattr(rp_ping.Heartbeat, "_send_ping", send)
    Heartbeat(dict.fromkeys(("RUNPOD_AI_API_KEY", "RUNPOD_POD_ID", "RUNPOD_WEBHOOK_PING"), "x")).start()
    assert thrice.wait(10)


def test_it_is_tried_again_where_there_was_no_thread_for_it(small_bundle: Path, tmp_path: Path):
    code = """if True:
        import runpy, threading
        from handler import front
        front._HEARTBEAT_AGAIN_S = 0.1
        start, failures = threading.Thread.start, [1, 2, 3]
        def start_later(thread):
            if thread.name == "heartbeat" and failures:
                failures.pop()
                raise RuntimeError("can't start new thread")  # of a limit that root is not under
            start(thread)
        threading.Thread.start = start_later
        runpy.run_module("handler", run_name="__main__", alter_sys=True)
    """
    env, deadline = {"BUNDLE": str(small_bundle), "ENGINE": "fake"}, time.monotonic() + 20
    with (
        (tmp_path / "log").open("w") as log,
        EmulatorThread() as emulator,
        WorkerProcess(emulator, [sys.executable, "-c", code], env, log=log),
    ):
        while not emulator.workers["worker-1"].ping_count:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert (tmp_path / "log").read_text().count("no heartbeat yet (can't start new thread); raise the limit") == 1


def test_an_id_that_no_address_can_carry_costs_no_pings():
    heartbeat = Heartbeat({})
    heartbeat.set("a,\ud800")
    assert heartbeat.get() == "a,?"
