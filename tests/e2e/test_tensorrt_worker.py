"""The whole worker on the TensorRT engine, whose CUDA and TensorRT are doubles."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.emulator import EmulatorThread
from benchmarks.worker_process import WorkerProcess
from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.batching.feed import run_rows
from engine.bundle import open_bundle
from engine.config import Limits
from engine.tasks import load_task
from tests.bundles import toy_tokenizer
from tests.plans import add_plan, profiles
from tests.tensorrt_double import POISON, plan_bytes

BATCHES, LENGTHS = (1, 4, 32), (8, 32)
COMMAND = [sys.executable, str(Path(__file__).with_name("tensorrt_worker.py"))]
POISONED = "b" + toy_tokenizer().id_to_token(POISON).removeprefix("##")
"""A text of which the tokenizer makes two tokens, the second of them POISON."""


@pytest.fixture
def bundle(small_bundle: Path) -> Path:
    made = profiles(BATCHES, LENGTHS)
    add_plan(small_bundle, plan_bytes(made), profiles=made, batches=BATCHES, lengths=LENGTHS)
    return small_bundle


def worker_on(emulator: EmulatorThread, bundle: Path, loop: str = "events") -> WorkerProcess:
    return WorkerProcess(emulator, COMMAND, {"BUNDLE": str(bundle), "ENGINE": "tensorrt", "WORKER_LOOP": loop})


def test_jobs_are_answered_as_on_the_cpu(emulator: EmulatorThread, bundle: Path):
    opened = open_bundle(bundle)
    task = load_task(opened, Limits())
    reference = OnnxRuntimeEngine(opened)
    texts = ["the quick brown fox", "a", "jumps over the lazy dog " * 3, "x y z"]
    with worker_on(emulator, bundle) as worker:
        health = emulator.wait(emulator.submit({"health": True})).output
        assert health["engine"] == "tensorrt"
        assert health["ladder"] == [
            {
                "name": "exact plan",
                "taken": True,
                "reason": "sm_89-trt10.13.0-fp16.plan fits NVIDIA L4 (sm_89) and TensorRT 10.13.0.35",
            }
        ]
        assert health["notes"] == []
        records = [emulator.submit({"texts": texts[: 1 + index % 4]}) for index in range(40)]
        for index, record in enumerate(records):
            request = task.parse({"texts": texts[: 1 + index % 4]})
            expected = task.postprocess(request, run_rows(reference, task.preprocess(request)))
            found = emulator.wait(record).output
            np.testing.assert_allclose(found["embeddings"], expected["embeddings"], rtol=1e-5, atol=1e-6)
        assert worker.stop() is not None


@pytest.mark.parametrize("loop", ["events", "sdk"])
def test_a_broken_context_fails_what_it_held_and_ends_the_worker(emulator: EmulatorThread, bundle: Path, loop: str):
    with worker_on(emulator, bundle, loop) as worker:
        before = emulator.wait(emulator.submit({"text": "the quick brown fox"}))
        assert before.status == "COMPLETED"
        broken = emulator.wait(emulator.submit({"texts": ["a", POISONED, "c"]}))
        assert broken.status == "FAILED"
        assert "worker fault: CUDA failed while running Bucket(batch=4, length=8)" in broken.error
        assert "illegal memory access" in broken.error
        children = psutil.Process(worker.process.pid).children(recursive=True)
        assert worker.process.wait(20) == 1
        assert not psutil.wait_procs(children, timeout=5)[1]
        if loop == "events":  # the SDK's loop has nobody to tell it
            reports = [ping for ping in emulator.workers["worker-1"].pings if ping.get("status") == "unhealthy"]
            assert "illegal memory access" in str(reports)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("loop", "number"), [("events", signal.SIGTERM), ("sdk", signal.SIGKILL), ("local", signal.SIGINT)]
)
def test_a_build_ends_with_the_worker_however_that_ends(
    small_bundle: Path, tmp_path: Path, loop: str, number: signal.Signals
):
    """And leaves nothing in the folder that it works in. What builds is a script; the real one needs a GPU."""
    build, pids = tmp_path / "build.py", tmp_path / "pids"
    build.write_text(
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids) + '.new'!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(pids) + '.new'!r}, {str(pids)!r})\n"
        "time.sleep(600)\n"
    )
    code = (
        "import sys; from engine.plans import build_plan; from tests.e2e.tensorrt_worker import main\n"
        f"build_plan.BUILD_COMMAND = (sys.executable, {str(build)!r})\n"
        "sys.exit(main())"
    )
    env = {**os.environ, "BUNDLE": str(small_bundle), "BUILD_ON_BOOT": "1", "PLAN_CACHE": str(tmp_path / "plans")}
    env["TMPDIR"] = str(tmp_path)
    options = ["--test_input", '{"input": {"text": "a"}}']
    if loop != "local":
        options = []
        env |= {
            "RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/?",
            "RUNPOD_WEBHOOK_POST_OUTPUT": "http://127.0.0.1:9/$ID?",
        }
        env["WORKER_LOOP"] = loop
    worker = subprocess.Popen([sys.executable, "-c", code, *options], env=env, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not pids.exists():
        assert worker.poll() is None, worker.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    building = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    try:
        worker.send_signal(number)
        said, _ = worker.communicate(timeout=20)
        while any(map(_runs, building)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        for process in building:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    if number == signal.SIGINT:
        assert worker.returncode == 130
        assert "Traceback" not in said
    while list(tmp_path.glob("build-plan-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
