"""SIGTERM before the worker is ready: it ends at once, in peace, and takes nothing with it."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from benchmarks.emulator import EmulatorThread


def test_a_worker_that_waits_for_its_bundle_stops(tmp_path: Path):
    """The bundle comes from a server that takes the request and never answers."""
    with EmulatorThread() as emulator, socket.create_server(("127.0.0.1", 0)) as server:
        env = {
            **emulator.worker_env(),
            "BUNDLE_URL": f"http://127.0.0.1:{server.getsockname()[1]}/bundle.tar",
            "BUNDLE_SHA256": "0" * 64,
            "BUNDLE_CACHE": str(tmp_path),
            "PATH": "/usr/bin:/bin",
        }
        command = [sys.executable, "-u", "-m", "handler"]
        worker = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        connection, _ = server.accept()
        with connection:
            (engine,) = psutil.Process(worker.pid).children()
            worker.send_signal(signal.SIGTERM)
            output, _ = worker.communicate(timeout=20)
        assert worker.returncode == 0, output
        assert "told to stop before the first job" in output
        assert "Traceback" not in output
        assert not engine.is_running()
        assert emulator.workers == {}, "no job was asked for"


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
