"""What a task of a fork tells Python's `logging` is seen, in whichever loop it runs, and so is what it prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.emulator import EmulatorThread
from benchmarks.worker_process import WorkerProcess
from tests.bundles import write_small_bundle

CHATTY = """
import logging

from engine.tasks.feature_extraction import FeatureExtraction

SETUP

class Chatty(FeatureExtraction):
    def texts(self, item, options):
        own = logging.getLogger("own")
        own.debug("at debug")
        own.info("at info, of %d characters", len(item))
        own.warning("at warning")
        try:
            own.error("no %d", "number")
            raise KeyError(item)
        except KeyError:
            own.exception("at error")
        print("printed", flush=True)
        return super().texts(item, options)


TASK = Chatty
"""


@pytest.fixture
def emulator() -> Iterator[EmulatorThread]:
    with EmulatorThread() as running:
        yield running


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("chatty") / "bundle", task="chatty")


def fork(folder: Path, setup: str = "") -> Path:
    for name in ("engine", "handler"):
        shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "engine/tasks/chatty.py").write_text(CHATTY.replace("SETUP", setup))
    return folder


def told(project: Path, bundle: Path, emulator: EmulatorThread | None, **options: str) -> str:
    """What a worker of `project` prints that answers one job: of the emulator, or of its command line."""
    environ = {"BUNDLE": str(bundle), "ENGINE": "fake", "RUNPOD_LOG_LEVEL": "INFO", **options}
    if emulator is None:
        command = [sys.executable, "-m", "handler", "--test_input", '{"input": {"text": "fox"}}']
        done = subprocess.run(command, cwd=project, env={**os.environ, **environ}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout
    command = ["/bin/sh", "-c", f'cd "{project}" && exec "{sys.executable}" -m handler']
    with tempfile.TemporaryFile("w+") as log:
        with WorkerProcess(emulator, command, environ, log=log) as worker:
            assert emulator.wait(emulator.submit({"text": "fox"})).status == "COMPLETED"
            worker.stop()
        log.seek(0)
        return log.read()


@pytest.mark.parametrize("loop", ["events", "sdk", "local"])
def test_what_is_logged_is_a_line_of_its_level(emulator: EmulatorThread, bundle: Path, tmp_path: Path, loop: str):
    project = fork(tmp_path)
    of = (project, bundle, None if loop == "local" else emulator)
    printed = told(*of, WORKER_LOOP="events" if loop == "local" else loop)
    lines = printed.splitlines()
    for level, message in (
        ("INFO", "at info, of 3 characters"),
        ("WARN", "at warning"),
        ("ERROR", "at error"),
    ):
        if loop == "local":
            assert f"{level:<5} | {message}" in lines
        else:
            assert f'"level": "{level}", "message": "{message}' in printed
    assert "printed" in lines
    assert "Traceback" in printed and "KeyError: 'fox'" in printed
    assert "at debug" not in printed
    few = told(*of, WORKER_LOOP="events" if loop == "local" else loop, RUNPOD_LOG_LEVEL="ERROR")
    assert "at error" in few
    assert not [message for message in ("at info", "at warning") if message in few]


def test_what_a_task_says_of_logging_holds(emulator: EmulatorThread, bundle: Path, tmp_path: Path):
    setup = 'import sys\nlogging.basicConfig(level="DEBUG", format="own: %(message)s", stream=sys.stdout)'
    project = fork(tmp_path, setup)
    for where in (emulator, None):
        assert "own: at debug\nown: at info, of 3 characters\n" in told(project, bundle, where)
