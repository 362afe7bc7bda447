"""The heartbeat outlives what the SDK's loop does not."""

import threading

import pytest
from runpod.serverless.modules import rp_ping

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
