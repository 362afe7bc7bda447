"""The image's health check."""

import os
import subprocess
import sys
from pathlib import Path

from handler.health import READY, mark_ready, ready_pids


def process(proc: Path, pid: str, name: str, command: str = "python") -> None:
    (proc / pid).mkdir(parents=True)
    (proc / pid / "comm").write_text(f"{name}\n")
    (proc / pid / "cmdline").write_text(command)


def test_the_name_fits_into_what_the_kernel_keeps():
    assert len(READY.encode()) <= 15


def test_a_ready_process_is_found_and_others_are_not(tmp_path: Path):
    process(tmp_path, "1", READY)
    process(tmp_path, "2", "python")
    process(tmp_path, "3", READY, command="")  # ended, not reaped
    (tmp_path / "self").mkdir()
    assert ready_pids(tmp_path) == [1]


def test_no_proc_no_worker(tmp_path: Path):
    mark_ready(tmp_path)
    assert ready_pids(tmp_path) == []


def test_a_process_that_says_it_is_ready_is_found_until_it_ends():
    code = "from handler.health import mark_ready; mark_ready(); print('x', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        assert worker.pid in ready_pids()
        check = subprocess.run([sys.executable, "-m", "handler.health"], capture_output=True, text=True)
        assert (check.returncode, check.stdout[:6]) == (0, "ready:")
        worker.communicate("done\n")
    assert worker.pid not in ready_pids()


def test_a_test_process_is_no_worker():
    assert os.getpid() not in ready_pids()
