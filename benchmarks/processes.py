"""Processes that were started here: stopped, killed with their children, weighed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from typing import Any

import psutil


def stop_process(process: subprocess.Popen[Any], timeout_s: float) -> float | None:
    """SIGTERM; seconds until `process` ended, None when it and its children had to be killed after `timeout_s`."""
    begin = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        return None
    return time.perf_counter() - begin


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """Kill `process` and its children."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                child.kill()
            except psutil.NoSuchProcess:
                pass  # it ended by itself
        process.kill()
    process.wait()


def kill_session(process: subprocess.Popen[Any]) -> None:
    """Kill `process`, which leads a session, and everything that it left behind there, whatever its process group."""
    with suppress(ProcessLookupError):  # nothing is left of it
        os.killpg(process.pid, signal.SIGKILL)
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)
    process.wait()


def tree_memory_mb(pid: int) -> dict[str, float]:
    """Memory of a process and its children in MB: RSS added up, which counts shared pages again, and PSS."""
    main = psutil.Process(pid)
    rss = pss = 0.0
    for process in [main, *main.children(recursive=True)]:
        try:
            found = process.memory_full_info()
        except psutil.NoSuchProcess:
            continue  # it ended in between
        rss, pss = rss + found.rss, pss + found.pss
    return {"rss_mb": rss / 1e6, "pss_mb": pss / 1e6}
