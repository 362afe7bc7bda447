"""The heartbeat outlives what the SDK's loop does not."""

import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from runpod.serverless.modules import rp_ping

from benchmarks.emulator import EmulatorThread, Fault
from benchmarks.worker_process import WorkerProcess
from handler.protocol.heartbeat import Heartbeat


def test_it_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch):
    """The SDK's loop ends on everything but requests' errors: a broken pipe of its log, half of a surrogate pair."""
    monkeypatch.setattr("handler.protocol.heartbeat._PAUSE_S", 0.01)
    monkeypatch.setattr("handler.protocol.heartbeat._UNDER_WAY_S", 0.01)
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
    heartbeat = Heartbeat(dict.fromkeys(("RUNPOD_AI_API_KEY", "RUNPOD_POD_ID", "RUNPOD_WEBHOOK_PING"), "x"))
    heartbeat.start()
    assert thrice.wait(10)
    heartbeat.stop()  # which the ping that never ends does not hold up


def test_nothing_is_heard_of_a_worker_after_it_said_that_it_is_to_be_replaced(small_bundle: Path, tmp_path: Path):
    """Not by a ping that was under way before, nor by the next one."""
    code = """if True:
        import runpy, time
        from handler.protocol import heartbeat, sdk
        heartbeat._UNDER_WAY_S = 20.0
        report = sdk.report_unhealthy
        def report_slowly(check, reason):
            report(check, reason)
            time.sleep(1.5)  # of a reply that takes long; there is a ping a second
        sdk.report_unhealthy = report_slowly
        runpy.run_module("handler", run_name="__main__", alter_sys=True)
    """
    env, deadline = {"BUNDLE": str(small_bundle), "ENGINE": "fake"}, time.monotonic() + 20
    with (tmp_path / "log").open("w") as log, EmulatorThread() as emulator:
        env |= emulator.worker_env("worker-1", ping_interval_ms=1000)
        with WorkerProcess(emulator, [sys.executable, "-c", code], env, log=log) as worker:
            while not emulator.workers["worker-1"].ping_count:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            emulator.inject("ping", Fault(delay_s=0.5))
            while not emulator.emulator.faults.struck["ping"]:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            psutil.Process(worker.process.pid).children()[0].kill()
            assert worker.process.wait(20) == 1
        assert emulator.workers["worker-1"].pings[-1].get("status") == "unhealthy"


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
    env = {"BUNDLE": str(small_bundle), "ENGINE": "fake", "RUNPOD_LOG_LEVEL": "WARN"}
    deadline = time.monotonic() + 20
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
