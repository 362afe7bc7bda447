"""`pytest -p tests.cuda_driver.plugin`: tests written for tests/cuda_double.py on real pycuda and cuda-python instead.

Each test runs in a process of its own, forked before CUDA begins: a sticky error lasts as long as its process.
"""

from __future__ import annotations

import os
import pickle
import signal
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from tests.cuda_driver import device

device.replace_double()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run `item` in a child, and tell its reports here."""
    ours, theirs = os.pipe()
    if not (pid := os.fork()):
        os.close(ours)
        _run(item, theirs)
    os.close(theirs)
    try:
        with open(ours, "rb") as told:
            content = told.read()
    except BaseException:  # pytest-timeout's, which watches this process
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(pid, 0)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in pickle.loads(content) if content else [_crashed(item, status)]:
        found = item.config.hook.pytest_report_from_serializable(config=item.config, data=report)
        item.ihook.pytest_runtest_logreport(report=found)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run(item: pytest.Item, told: int) -> None:
    code = 1
    try:
        reports = runtestprotocol(item, log=False, nextitem=None)
        said = device.reports()
        if said and reports[-1].passed and item.get_closest_marker("misuses_cuda") is None:
            reports[-1].outcome, reports[-1].longrepr = "failed", f"the software driver reports:\n{said}"
        to_data = item.config.hook.pytest_report_to_serializable
        with open(told, "wb") as pipe:
            pipe.write(pickle.dumps([to_data(config=item.config, report=report) for report in reports]))
        code = 0
    finally:
        os._exit(code)


def _crashed(item: pytest.Item, status: int) -> dict[str, Any]:
    how = f"by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else f"with status {status}"
    report = pytest.TestReport(
        item.nodeid, item.location, {}, "failed", f"the process of this test ended {how}", "call"
    )
    found: dict[str, Any] = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
    return found
