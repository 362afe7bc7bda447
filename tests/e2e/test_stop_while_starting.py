"""SIGTERM before the worker is ready: it ends at once, in peace, and takes nothing with it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.emulator import EmulatorThread
from tests.processes import interrupted_while_it_imports


@contextmanager
def waiting_for_its_bundle(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A worker whose bundle comes from a server that takes the request and never answers, and its engine's process."""
    with EmulatorThread() as emulator, socket.create_server(("127.0.0.1", 0)) as server:
        env = {
            **emulator.worker_env(),
            "RUNPOD_LOG_LEVEL": "INFO",
            "BUNDLE_URL": f"http://127.0.0.1:{server.getsockname()[1]}/bundle.tar",
            "BUNDLE_SHA256": "0" * 64,
            "BUNDLE_CACHE": str(tmp_path),
            "PATH": "/usr/bin:/bin",
        }
        command = [sys.executable, "-u", "-m", "handler"]
        outlives = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where these tests were started with nohup
        worker = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        signal.signal(signal.SIGHUP, outlives)
        connection, _ = server.accept()
        with connection:
            (engine,) = psutil.Process(worker.pid).children()
            yield worker, engine
        assert emulator.workers == {}, "no job was asked for"


def only_a_lock(cache: Path) -> bool:
    return [path.name for path in cache.iterdir()] == [f".{'0' * 64}.lock"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_a_worker_that_waits_for_its_bundle_stops(tmp_path: Path, number: signal.Signals, code: int):
    with waiting_for_its_bundle(tmp_path) as (worker, engine):
        worker.send_signal(number)
        output, _ = worker.communicate(timeout=20)
        assert worker.returncode == code, output
        assert "told to stop before the first job" in output
        assert "Traceback" not in output
        assert not engine.is_running()
    assert only_a_lock(tmp_path)


def test_a_worker_that_is_killed_while_it_starts_takes_its_engine_with_it(tmp_path: Path):
    with waiting_for_its_bundle(tmp_path) as (worker, engine):
        worker.kill()
        assert worker.communicate(timeout=20)  # both have closed their output
        psutil.wait_procs([engine], timeout=5)
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    assert only_a_lock(tmp_path)


@pytest.mark.parametrize(
    ("number", "hint"),
    [(signal.SIGKILL, "the machine, or the container, may be out of memory"), (signal.SIGBUS, "a file that is mapped")],
)
def test_an_engine_that_is_killed_while_it_starts_is_told(tmp_path: Path, number: signal.Signals, hint: str):
    with waiting_for_its_bundle(tmp_path) as (worker, engine):
        engine.send_signal(number)
        output, _ = worker.communicate(timeout=20)
        assert worker.returncode == 1
        assert "cannot start: the engine's process ended unexpectedly" in output
        assert f"ended by signal {number:d}; {hint}" in output
        assert "Traceback" not in output


def test_a_machine_without_room_for_a_second_process_is_told():
    code = """if True:
        import os, sys
        def fork(): raise BlockingIOError(11, "Resource temporarily unavailable")  # of a limit that root is not under
        os.fork = fork
        from handler.__main__ import main
        sys.exit(main())
    """
    env = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/"}
    worker = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=30)
    assert worker.returncode == 1
    assert "no second process to be had for the engine (Resource temporarily unavailable)" in worker.stdout
    assert "Traceback" not in worker.stderr


def test_a_worker_that_is_stopped_in_the_instant_of_the_fork_leaves_nobody(tmp_path: Path):
    """The signal comes while the other process exists, and its id is not yet known to the one that ends it."""
    code = """if True:
        import os, signal, sys
        fork = os.fork
        def fork_and_stop():
            pid = fork()
            if pid:
                print(pid, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
            return pid
        os.fork = fork_and_stop
        from handler.__main__ import main
        sys.exit(main())
    """
    with socket.create_server(("127.0.0.1", 0)) as server:  # which never answers, so that the boot would go on
        env = {
            "RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/",
            "BUNDLE_URL": f"http://127.0.0.1:{server.getsockname()[1]}/bundle.tar",
            "BUNDLE_SHA256": "0" * 64,
            "BUNDLE_CACHE": str(tmp_path),
        }
        worker = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True, timeout=30)
        assert worker.returncode == 0
        engine = int(worker.stdout.split()[0])
        assert not psutil.pid_exists(engine) or psutil.Process(engine).status() == psutil.STATUS_ZOMBIE


def test_a_worker_that_is_stopped_while_its_settings_are_read_stops_in_peace():
    code = """if True:
        import os, signal, sys
        from engine.config import Settings
        Settings.from_environ = lambda environ: os.kill(os.getpid(), signal.SIGTERM)
        from handler.__main__ import main
        sys.exit(main())
    """
    env = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/"}
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=30).returncode == 0


@pytest.mark.parametrize("module", ["gc", "handler.protocol.sdk", "numpy"])
def test_ctrl_c_while_a_module_is_imported_is_one_line(small_bundle: Path, module: str):
    """One that is written in C may turn what is raised meanwhile into errors of its own, over pages."""
    argv = ("--test_input", '{"input": {"text": "a"}}')
    done = interrupted_while_it_imports(module, "handler", *argv, BUNDLE=str(small_bundle), ENGINE="onnxruntime-cpu")
    assert (done.returncode, done.stdout, done.stderr) == (130, "INFO  | interrupted\n", "")


AS_PROCESS_1 = ("unshare", "--pid", "--fork", "--mount-proc")
"""Which the kernel spares every signal that it has no handler for."""


@pytest.mark.parametrize(
    ("option", "number", "code", "line"),
    [
        ("--test_input={}", signal.SIGINT, 130, "interrupted"),
        ("--test_input={}", signal.SIGTERM, 143, "told to stop"),
        ("--rp_serve_api", signal.SIGHUP, 0, "told to stop"),
        pytest.param("--rp_serve_api", signal.SIGTERM, 0, "told to stop", id="process 1"),
    ],
)
def test_a_local_worker_that_is_stopped_while_it_fetches_its_bundle_leaves_nothing_of_it(
    tmp_path: Path, option: str, number: signal.Signals, code: int, line: str, request: pytest.FixtureRequest
):
    before: tuple[str, ...] = ()
    if "process 1" in request.node.name:
        before = AS_PROCESS_1
        if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
            pytest.skip("no process namespaces for this user")
    with socket.create_server(("127.0.0.1", 0)) as server:
        env = {
            **os.environ,
            "BUNDLE_URL": f"http://127.0.0.1:{server.getsockname()[1]}/bundle.tar",
            "BUNDLE_SHA256": "0" * 64,
            "BUNDLE_CACHE": str(tmp_path),
        }
        command = [*before, sys.executable, "-m", "handler", option.format('{"input": {"text": "a"}}')]
        outlives = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        worker = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        signal.signal(signal.SIGHUP, outlives)
        server.settimeout(20)
        connection, _ = server.accept()
        with connection:
            connection.recv(1)
            process = psutil.Process(worker.pid)
            (process.children() or [process])[0].send_signal(number)
            output, _ = worker.communicate(timeout=20)
    assert worker.returncode == code
    assert output.splitlines()[1:] == [f"INFO  | {line}"]
    assert only_a_lock(tmp_path)
