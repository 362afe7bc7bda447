"""What a machine may do to a worker: no room for logs, no output at all, variables that make no sense."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.emulator import EmulatorThread, Fault
from benchmarks.worker_process import WorkerProcess

SHELL = ("bash", "-c")


def worker_env(emulator: EmulatorThread, bundle: Path, **env: str) -> dict[str, str]:
    ours = {"RUNPOD_LOG_LEVEL": "INFO", "BUNDLE": str(bundle), "ENGINE": "fake"}
    return {**os.environ, **emulator.worker_env(), **ours, **env}


def full_pipe() -> tuple[int, int]:
    """Both ends of a pipe that has no room left."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)
    return reader, writer


@pytest.mark.parametrize(
    ("output", "loop"),
    [
        ("> /dev/full 2>&1", "events"),
        ("> >(exit) 2>&1", "events"),
        ("<&- >&- 2>&-", "events"),
        ("> >(exit) 2>&1", "sdk"),
    ],
    ids=["full", "gone", "closed", "gone, stock loop"],
)
def test_what_cannot_be_printed_costs_no_job(emulator: EmulatorThread, small_bundle: Path, output: str, loop: str):
    for route in ("job-take", "job-done") if loop == "events" else ():
        emulator.inject(route, Fault(status=500))  # each makes a line
    command = (*SHELL, f'exec "{sys.executable}" -m handler {output}')
    env = {"BUNDLE": str(small_bundle), "ENGINE": "fake", "WORKER_LOOP": loop}
    env["RUNPOD_LOG_LEVEL"] = "DEBUG"  # so the SDK prints as well
    with WorkerProcess(emulator, command, env) as worker:
        main = psutil.Process(worker.process.pid)
        for process in (main, *(child for child in main.children() if child.name().startswith("python"))):
            opened = [Path(f"/proc/{process.pid}/fd/{number}").readlink().name for number in range(3)]
            assert not any(name.startswith("socket:") for name in opened), "a library could print into it"
        assert emulator.wait(emulator.submit({"text": "a"})).status == "COMPLETED"
        assert worker.stop() is not None
        assert worker.process.returncode == 0


def test_what_nobody_reads_any_more_costs_the_sdks_own_loop_no_job(emulator: EmulatorThread, small_bundle: Path):
    """It prints between taking a job and handing it on."""
    reader, writer = os.pipe()
    env = {"BUNDLE": str(small_bundle), "ENGINE": "fake", "RUNPOD_LOG_LEVEL": "DEBUG", "WORKER_LOOP": "sdk"}
    with WorkerProcess(emulator, [sys.executable, "-m", "handler"], env, log=writer):
        for end in (reader, writer):
            os.close(end)
        records = [emulator.submit({"text": "a"}) for _ in range(2)]
        assert [emulator.wait(record).status for record in records] == ["COMPLETED"] * 2


@pytest.mark.parametrize("output", ["> /dev/full", ">&-"])
def test_a_worker_that_cannot_print_stops_before_the_first_job(emulator: EmulatorThread, tmp_path: Path, output: str):
    """While it waits for its turn to fetch the bundle, so for certain before it is ready."""
    env = worker_env(emulator, tmp_path, BUNDLE_URL="http://127.0.0.1:9/b.tar", BUNDLE_SHA256="0" * 64)
    env |= {"BUNDLE_CACHE": str(tmp_path / "cache")}
    worker = subprocess.Popen([*SHELL, f'exec "{sys.executable}" -m handler {output} 2>/dev/null'], env=env)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("cache/.*partial*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("RUNPOD_WEBHOOK_POST_OUTPUT", "", "RUNPOD_WEBHOOK_POST_OUTPUT='' is not an address"),
        ("RUNPOD_AI_API_KEY", "se\ncret", "RUNPOD_AI_API_KEY holds a line end"),
        ("RUNPOD_AI_API_KEY", "se\u20accret", "RUNPOD_AI_API_KEY holds a line end or another character that no header"),
        ("RUNPOD_LOG_LEVEL", "LOUD", "RUNPOD_LOG_LEVEL='LOUD' is not allowed; set it to one of ERROR, WARN, INFO"),
        ("RUNPOD_WEBHOOK_POST_OUTPUT", "https://h/done?x", "RUNPOD_WEBHOOK_POST_OUTPUT='https://h/done?***' is not an"),
    ],
)
def test_variables_with_which_no_job_is_answered_stop_the_boot(
    emulator: EmulatorThread, small_bundle: Path, name: str, value: str, sentence: str
):
    loop = "sdk" if "done" in value or "\n" in value else "events"  # each kind in either
    env = worker_env(emulator, small_bundle, **{name: value, "WORKER_LOOP": loop})
    ended = subprocess.run(
        [sys.executable, "-m", "handler"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert f"cannot start: {sentence}" in ended.stdout
    assert "Traceback" not in ended.stderr
    assert "cret" not in ended.stdout
    assert emulator.workers == {}, "no job was asked for"


@pytest.mark.parametrize("interval", ["500", "4s", "9" * 5000])
def test_an_interval_that_the_heartbeat_would_fail_on_is_replaced(
    emulator: EmulatorThread, small_bundle: Path, tmp_path: Path, interval: str
):
    env = {"BUNDLE": str(small_bundle), "ENGINE": "fake", "RUNPOD_LOG_LEVEL": "WARN"}
    env["RUNPOD_PING_INTERVAL"] = interval
    with (tmp_path / "log").open("w") as log, WorkerProcess(emulator, [sys.executable, "-m", "handler"], env, log=log):
        deadline = time.monotonic() + 20
        while not emulator.workers["worker-1"].ping_count and time.monotonic() < deadline:
            time.sleep(0.05)
        assert emulator.workers["worker-1"].ping_count == 1, "once in 10 s"
    assert (
        f"RUNPOD_PING_INTERVAL='{interval[:80]}' is not 1000 to 9999999 milliseconds" in (tmp_path / "log").read_text()
    )


@pytest.mark.parametrize("limit", ["-S", ""])
def test_a_worker_that_may_open_few_files_raises_the_limit_or_takes_no_job(
    emulator: EmulatorThread, small_bundle: Path, tmp_path: Path, limit: str
):
    """With 8 a worker takes a job and has no socket left to post its result."""
    command = (*SHELL, f'ulimit {limit} -n 8; exec "{sys.executable}" -m handler')
    env = {"BUNDLE": str(small_bundle), "ENGINE": "fake", "MAX_CONCURRENCY": "8"}
    if limit == "-S":  # the one that a program may raise
        with WorkerProcess(emulator, command, env):
            assert emulator.wait(emulator.submit({"text": "a"}), 20).status == "COMPLETED"
        return
    ended = subprocess.run(
        command, env=worker_env(emulator, small_bundle, **env), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert (
        "cannot start: this process may open 8 files, and needs 40, sockets included; raise the limit" in ended.stdout
    )
    assert emulator.workers == {}, "no job was asked for"


def test_the_sdks_own_server_without_shared_memory_is_told(emulator: EmulatorThread, small_bundle: Path):
    own_mounts = ("unshare", "--mount", *SHELL)
    read_only = "mount -t tmpfs -o ro none /dev/shm"
    if subprocess.run([*own_mounts, read_only], capture_output=True, check=False).returncode:
        pytest.skip("this user may mount nothing")
    ended = subprocess.run(
        [*own_mounts, f'{read_only}; exec "{sys.executable}" -m handler'],
        env=worker_env(emulator, small_bundle, WORKER_LOOP="sdk"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "need shared memory, and /dev/shm has none (Read-only file system); give the container some" in ended.stdout
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("loop", ["events", "sdk"])
def test_pings_take_the_way_that_jobs_take(emulator: EmulatorThread, small_bundle: Path, loop: str):
    """requests would send them to the proxy of the environment, which here is none."""
    env = {
        "ENGINE": "fake",
        "WORKER_LOOP": loop,
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "NO_PROXY": "x",
    }
    with WorkerProcess.ours(emulator, small_bundle, env=env):
        deadline = time.monotonic() + 10
        while not emulator.workers["worker-1"].ping_count and time.monotonic() < deadline:
            time.sleep(0.05)
        assert emulator.workers["worker-1"].ping_count


def test_output_that_nobody_reads_costs_no_job(emulator: EmulatorThread, small_bundle: Path):
    """A pipe whose reader hangs, full from the start: the first line would wait for ever."""
    reader, writer = full_pipe()
    try:
        env = {"BUNDLE": str(small_bundle), "ENGINE": "fake", "RUNPOD_LOG_LEVEL": "INFO"}
        with WorkerProcess(emulator, [sys.executable, "-m", "handler"], env, log=writer) as worker:
            emulator.inject("job-done", Fault(status=500))  # makes a line
            assert emulator.wait(emulator.submit({"text": "a"})).status == "COMPLETED"
            os.read(reader, 1 << 20)
            emulator.inject("job-done", Fault(status=500))
            assert emulator.wait(emulator.submit({"text": "a"})).status == "COMPLETED"
            assert worker.stop() is not None
            assert worker.process.returncode == 0
            said = os.read(reader, 1 << 20)
            assert b"lines before this one could not be written" in said
            assert b"sending a result failed (status 500)" in said
    finally:
        os.close(reader)
        os.close(writer)


PRINTS_WHILE_IT_PRINTS = """
import os, signal, sys, threading
from handler.processes import output
output.install()
def stop(number, frame):
    print("stopping")  # as the handler of the SDK
    os.write(2, b"stopped")
signal.signal(signal.SIGTERM, stop)
sent = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
sent.start()
print("a line")
sent.join()
"""


def test_a_signal_that_comes_while_a_line_is_on_its_way_stops_the_sdks_own_loop():
    """It asks for the next job for ever where the line of its signal handler fails."""
    reader, writer = full_pipe()  # so each line waits a second
    ended = subprocess.run(
        [sys.executable, "-c", PRINTS_WHILE_IT_PRINTS], stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
    )
    for end in (reader, writer):
        os.close(end)
    assert ended.stderr == b"stopped"
    assert ended.returncode == 0


def test_a_worker_that_is_frozen_wakes_up_as_it_was(emulator: EmulatorThread, small_bundle: Path):
    """For longer than its timeouts, just after a job and in the middle of one: the clock goes on meanwhile."""
    command = [sys.executable, str(Path(__file__).with_name("chaos_worker.py"))]
    env = {"BUNDLE": str(small_bundle), "ENGINE": "fake", "ENGINE_TIMEOUT_S": "1"}
    env["CHAOS_SLEEP_MS"] = "260"  # so that the engine is watched while it runs: every 250 ms
    with WorkerProcess(emulator, command, env) as worker:
        engine = emulator.wait(emulator.submit({"health": True})).output["engine_pid"]
        for wait_first in (True, False):
            record = emulator.submit({"text": "a"})
            if wait_first:
                emulator.wait(record)
            else:
                time.sleep(0.1)
            for signum, seconds in ((signal.SIGSTOP, 1.3), (signal.SIGCONT, 0.5)):
                for pid in (worker.process.pid, engine):
                    os.kill(pid, signum)
                time.sleep(seconds)
            assert emulator.wait(record).status == "COMPLETED"
            assert worker.process.poll() is None
        assert emulator.wait(emulator.submit({"text": "a"})).status == "COMPLETED"


@pytest.mark.parametrize("outlives", [False, True])
def test_sighup_stops_a_worker_that_was_not_started_to_outlive_it(
    emulator: EmulatorThread, small_bundle: Path, outlives: bool
):
    code = f"""if True:
        import os, signal, sys
        signal.signal(signal.SIGHUP, signal.{"SIG_IGN" if outlives else "SIG_DFL"})
        os.execv(sys.executable, [sys.executable, "-m", "handler"])
    """
    env = {"BUNDLE": str(small_bundle), "ENGINE": "fake"}
    with WorkerProcess(emulator, [sys.executable, "-c", code], env) as worker:
        engine = psutil.Process(emulator.wait(emulator.submit({"health": True})).output["engine_pid"])
        for pid in (engine.pid, worker.process.pid):  # a terminal's reaches both
            os.kill(pid, signal.SIGHUP)
        if outlives:
            assert emulator.wait(emulator.submit({"text": "a"})).status == "COMPLETED"
        else:
            assert worker.process.wait(20) == 0
            assert not engine.is_running()


def test_signals_that_come_while_a_worker_ends_leave_nobody_behind(emulator: EmulatorThread, small_bundle: Path):
    """The engine's process, stopped here, takes its time to end."""
    with WorkerProcess.ours(emulator, small_bundle, env={"ENGINE": "fake"}) as worker:
        engine = psutil.Process(emulator.wait(emulator.submit({"health": True})).output["engine_pid"])
        engine.suspend()
        while worker.process.poll() is None:
            worker.process.terminate()
            time.sleep(0.02)
        assert worker.process.returncode == 0
        assert not engine.is_running()


def test_there_is_no_moment_at_the_end_when_a_signal_kills(emulator: EmulatorThread, small_bundle: Path):
    """Here the step from which on they are ignored comes late, as on a machine that is busy."""
    code = """if True:
        import runpy, time
        from handler.processes import signals
        ignore = signals.ignore
        def ignore_late():
            time.sleep(0.3)
            ignore()
        signals.ignore = ignore_late
        runpy.run_module("handler", run_name="__main__", alter_sys=True)
    """
    env = {"BUNDLE": str(small_bundle), "ENGINE": "fake"}
    with WorkerProcess(emulator, [sys.executable, "-c", code], env) as worker:
        while worker.process.poll() is None:
            worker.process.terminate()
            time.sleep(0.02)
        assert worker.process.returncode == 0
