"""What is done beside a boot's main thread."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from handler.beside import Beside


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


@pytest.mark.parametrize(("given", "kept"), [(None, "1"), ("2", "2")])
def test_numpy_gets_no_threads_of_its_own_unless_told(small_bundle: Path, given: str | None, kept: str):
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from engine.config import Settings\n"
        "from handler.boot import boot\n"
        "from handler.timeline import Timeline\n"
        "worker = boot(Settings(bundle=Path(sys.argv[1]), engine='fake'), Timeline())\n"
        "print(os.environ['OPENBLAS_NUM_THREADS'], len(os.listdir('/proc/self/task')))\n"
        "worker.batcher.close()"
    )
    env = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    if given is not None:
        env["OPENBLAS_NUM_THREADS"] = given
    command = [sys.executable, "-c", code, str(small_bundle)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.split()
    assert told[0] == kept
    if given is None:
        assert told[1] == "2"  # this one, and the engine's
