"""Lines that many jobs would repeat."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from handler.log import Seldom


def test_an_outage_writes_few_lines_that_count_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    now = 100.0
    monkeypatch.setattr("handler.log.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.delenv("RUNPOD_ENDPOINT_ID", raising=False)
    seldom = Seldom(most=3, every_s=10.0)
    for number in range(8):
        seldom.log("WARN", f"failed {number}", "job")
    assert capsys.readouterr().out.splitlines() == [f"WARN  | job | failed {number}" for number in range(3)]
    now += 9.9
    seldom.log("WARN", "too early")
    now += 0.1
    seldom.log("WARN", "again")
    seldom.log("WARN", "and again")
    assert capsys.readouterr().out.splitlines() == ["WARN  | again (and 6 such lines left out)"]
    now += 3600
    for _ in range(5):
        seldom.log("WARN", "later")
    assert capsys.readouterr().out.splitlines() == ["WARN  | later (and 1 such lines left out)", *["WARN  | later"] * 2]
