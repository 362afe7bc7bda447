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
