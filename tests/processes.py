"""Processes of another user, that are killed or interrupted, and the end of those that a test did not start itself."""

import multiprocessing
import os
import subprocess
import sys
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


def interrupted_while_it_imports(
    module: str, package: str, *argv: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """`python -m package argv`, which gets SIGINT as it imports `module`."""
    code = f"""if True:
        import builtins, os, runpy, signal
        kept = builtins.__import__
        def interrupted_import(name, *arguments, **named):
            if name == {module!r}:
                os.kill(os.getpid(), signal.SIGINT)
            return kept(name, *arguments, **named)
        builtins.__import__ = interrupted_import
        runpy.run_module({package!r}, run_name="__main__", alter_sys=True)
    """
    command, env = [sys.executable, "-c", code, *argv], {**os.environ, **environ}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
