"""`python -m handler` as RunPod starts it: a process, its environment, signals, and jobs over HTTP."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import psutil
import pytest
import requests

from benchmarks.emulator import EmulatorThread, Fault
from benchmarks.worker_process import WorkerProcess
from engine.config import Settings
from tests import large_pages
from tests.bundles import move_weights_out, toy_tokenizer
from tests.pages import page
from tests.plans import add_plan
from tests.ports import held_port
from tests.processes import wait_until_dead

BAD_PAYLOADS: list[tuple[Any, str]] = [
    ({"texts": "not a list"}, "invalid input: `texts` must be a list of strings, got a string"),
    ({"wrong": 1}, "invalid input: unknown field `wrong`"),
    ({"normalize": True}, "invalid input: `input` needs either `text`"),
    (
        {"texts": ["a"] * (Settings().max_items + 1)},
        f"invalid input: `texts` must hold 1 to {Settings().max_items} strings, got {Settings().max_items + 1}",
    ),
    (
        {"text": "x" * 9_000_000},
        f"invalid input: `text` has 9000000 characters, allowed are {Settings().max_chars}",
    ),
    ({"text": "a", "dimensions": "NaN"}, "invalid input: `dimensions` must be a whole number"),
    ([1, 2], "invalid input: `input` must be an object, got a list"),
]


@pytest.fixture(params=["events", "sdk"])
def worker(request: pytest.FixtureRequest, emulator: EmulatorThread, small_bundle: Path) -> Iterator[WorkerProcess]:
    env = {"WORKER_LOOP": request.param, "MAX_CONCURRENCY": "4"}
    with WorkerProcess.ours(emulator, small_bundle, env=env) as running:
        yield running


def test_jobs_and_bad_payloads(worker: WorkerProcess, emulator: EmulatorThread):
    good = emulator.wait(emulator.submit({"texts": ["the fox", "the dog"]}))
    assert good.status == "COMPLETED"
    assert len(good.output["embeddings"]) == 2
    for payload, sentence in BAD_PAYLOADS:
        record = emulator.wait(emulator.submit(payload))
        assert record.status == "FAILED"
        assert record.error.startswith(sentence)
    again = emulator.wait(emulator.submit({"texts": ["the fox", "the dog"]}))
    assert again.output == good.output
    assert worker.process.poll() is None


def test_nan_in_a_job_is_refused(emulator: EmulatorThread, small_bundle: Path):
    """Python's JSON reader takes the word NaN; the emulator, like JSON, does not, so the reply to a take is forged."""
    body = '[{"id": "forged", "input": {"text": "a", "dimensions": NaN}}]'
    emulator.inject("job-take", Fault(status=200, body=body, hang_up_after="after"))
    with WorkerProcess.ours(emulator, small_bundle):
        record = emulator.wait(emulator.submit({"text": "a"}, job_id="forged"))
    assert record.error == "invalid input: `dimensions` must be a whole number from 1 to 8, got nan"


def test_the_stock_loop_loses_no_job_to_one_that_python_cannot_read(emulator: EmulatorThread, small_bundle: Path):
    bad = '{"input": %s, "id": "bad"}' % ("[" * 5000 + "]" * 5000)
    body = f'[{{"id": "one", "input": {{"text": "a"}}}}, {bad}, {{"id": "none"}}]'
    emulator.inject("job-take", Fault(body=body, hang_up_after="after"))
    records = [emulator.submit({"text": "a"}, job_id=name) for name in ("one", "bad", "none")]
    with WorkerProcess.ours(emulator, small_bundle, env={"WORKER_LOOP": "sdk", "MAX_CONCURRENCY": "4"}):
        one, unreadable, without = (emulator.wait(record) for record in records)
        assert emulator.wait(emulator.submit({"text": "a"})).output == one.output
    assert len(one.output["embedding"]) == one.output["dimensions"]
    assert unreadable.error.startswith("invalid input: the job cannot be read: it is nested too deeply")
    assert without.error == "invalid input: the job has no `input`"


def test_the_stock_loop_answers_a_lone_job_without_input(emulator: EmulatorThread, small_bundle: Path):
    """Taken alone it is an object, which the SDK refuses; in a list it does not."""
    emulator.inject("job-take", Fault(body='{"id": "alone"}', hang_up_after="after"))
    record = emulator.submit({"text": "a"}, job_id="alone")
    with WorkerProcess.ours(emulator, small_bundle, env={"WORKER_LOOP": "sdk", "MAX_CONCURRENCY": "1"}):
        assert emulator.wait(record, 20).error == "invalid input: the job has no `input`"


def test_health(emulator: EmulatorThread, small_bundle: Path):
    with WorkerProcess.ours(emulator, small_bundle) as worker:
        emulator.wait(emulator.submit({"text": "a"}))
        health = emulator.wait(emulator.submit({"health": True})).output
        assert (health["model"], health["engine"], health["task"]) == ("toy", "onnxruntime-cpu", "feature-extraction")
        assert health["reason"] == "no CUDA driver or no device"
        stages = {"interpreter", "imports", "verify", "engine load", "warm-up", "SDK import", "first take", "ready"}
        assert stages <= set(health["boot_ms"])
        assert health["pid"] == worker.process.pid
        assert health["jobs_failed"] == 0
        assert (health["jobs_done"], health["jobs_running"], health["rows_per_batch"]) == (1, 0, {"1": 1})
        assert set(health["stages_ms"]) == {"prepare", "queue", "run", "engine", "finish"}
        assert set(health["memory_mb"]) == {"front", "engine"}
        (table,) = re.findall(r"## Health\n.*?(\|.*?)\n\n", page("docs/api.md"), re.DOTALL)
        told = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split(" | ")[0])}
        assert set(health) == told


@pytest.mark.skipif(not large_pages.ON_REQUEST_ALONE, reason="this kernel gives them by itself, or not at once")
def test_an_engine_on_the_cpu_gets_large_pages(emulator: EmulatorThread, small_bundle: Path):
    with WorkerProcess.ours(emulator, small_bundle):
        engine = emulator.wait(emulator.submit({"health": True})).output["engine_pid"]
        deadline = time.monotonic() + 20
        while not large_pages.huge_kb(engine):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert emulator.wait(emulator.submit({"text": "a"})).status == "COMPLETED"


def test_timings_when_asked(worker: WorkerProcess, emulator: EmulatorThread):
    reply = emulator.wait(emulator.submit({"text": "a", "timings": True})).output
    assert set(reply["timings_ms"]) == {"prepare", "engine"}
    assert "timings_ms" not in emulator.wait(emulator.submit({"text": "a", "timings": False})).output
    refused = emulator.wait(emulator.submit({"text": "a", "timings": 1}))
    assert refused.error == "invalid input: `timings` must be true or false, got a number"


def test_a_bulk_job_tells_how_far_it_is(emulator: EmulatorThread, small_bundle: Path):
    with WorkerProcess.ours(emulator, small_bundle) as worker:
        record = emulator.wait(emulator.submit({"texts": ["a b c"] * 3000, "progress": True}))
        worker.stop()
    assert record.status == "COMPLETED"
    assert len(record.output["embeddings"]) == 3000
    done = [progress["rows_done"] for progress in record.progress]
    assert done
    assert done == sorted(done)
    assert 0 < done[0] < 3000
    assert {progress["rows"] for progress in record.progress} == {3000}


def test_a_bulk_job_streams_its_parts_in_order(emulator: EmulatorThread, small_bundle: Path):
    texts = [" ".join("abcdefgh"[: 1 + index % 8]) for index in range(300)]
    with WorkerProcess.ours(emulator, small_bundle):
        whole = emulator.wait(emulator.submit({"texts": texts})).output
        record = emulator.wait(emulator.submit({"texts": texts, "stream": True}))
        assert record.status == "COMPLETED"
        assert [len(chunk["embeddings"]) for chunk in record.chunks] == [64, 64, 64, 64, 44]
        assert [vector for chunk in record.chunks for vector in chunk["embeddings"]] == whole["embeddings"]
        assert sum(chunk["usage"]["total_tokens"] for chunk in record.chunks) == whole["usage"]["total_tokens"]
        (final,) = record.answers
        assert (final.is_stream, final.body) == (True, {"output": record.chunks})
        emulator.inject("job-stream", Fault(hang_up=True, hang_up_after="after"))
        repeated = emulator.wait(emulator.submit({"texts": texts, "stream": True}))
        assert [chunk["first"] for chunk in repeated.chunks] == [0, 0, 64, 128, 192, 256]
        assert repeated.output == record.output
        failed = emulator.wait(emulator.submit({"texts": [*texts, "a " * 100], "truncate": False, "stream": True}))
        assert failed.status == "FAILED"
        assert "text 300 has more than 32 tokens" in failed.error
        single = emulator.wait(emulator.submit({"text": "a", "stream": True}))
        assert len(single.chunks) == 1
        assert single.output == single.chunks
        assert set(single.output[0]) == {"embedding", "dimensions", "usage"}


def test_the_stock_loop_gives_the_parts_of_a_stream_in_the_end(
    emulator: EmulatorThread, small_bundle: Path, tmp_path: Path
):
    """What the stock loop has not is told."""
    texts = [" ".join("abcdefgh"[: 1 + index % 8]) for index in range(100)]
    env = {"WORKER_LOOP": "sdk", "DRAIN_TIMEOUT_S": "9", "RESULT_TIMEOUT_S": " ", "RUNPOD_LOG_LEVEL": "WARN"}
    with (tmp_path / "log").open("w") as out, WorkerProcess.ours(emulator, small_bundle, env=env, log=out):
        whole = emulator.wait(emulator.submit({"texts": texts})).output
        parts = emulator.wait(emulator.submit({"texts": texts, "stream": True})).output
        assert [len(part["embeddings"]) for part in parts] == [64, 36]
        given = [vector for part in parts for vector in part["embeddings"]]
        assert np.array_equal(np.array(given, np.float32), np.array(whole["embeddings"], np.float32))
        (lone,) = emulator.wait(emulator.submit({"text": "a", "stream": True})).output
        assert len(lone["embedding"]) == 8
        failed = emulator.wait(emulator.submit({"texts": [*texts, "a " * 100], "truncate": False, "stream": True}))
        assert failed.error.startswith("invalid input: text 100 has more than 32 tokens")
        refused = emulator.wait(emulator.submit({"text": "a", "stream": 1}))
        assert refused.error == "invalid input: `stream` must be true or false, got a number"
        models = emulator.wait(emulator.submit({"openai_route": "/v1/models", "stream": True})).output
        assert [one["id"] for one in models["data"]] == ["toy"]
    said = (tmp_path / "log").read_text()
    assert said.count('"WARN", "message": "DRAIN_TIMEOUT_S: of no effect with WORKER_LOOP=sdk') == 1


@pytest.mark.parametrize(
    ("signum", "sentence"),
    [
        (signal.SIGKILL, "worker fault: the engine's process ended unexpectedly"),
        (signal.SIGSTOP, "worker fault: the engine did not answer within 1 s (ENGINE_TIMEOUT_S)"),
    ],
)
def test_an_engine_that_dies_or_hangs_ends_the_worker(
    emulator: EmulatorThread, small_bundle: Path, signum: signal.Signals, sentence: str
):
    """And RunPod is told, not by way of the environment's proxy, which here is none."""
    env = {"ENGINE_TIMEOUT_S": "1", "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    with WorkerProcess.ours(emulator, small_bundle, env={**env, "NO_PROXY": "x"}) as worker:
        engine = emulator.wait(emulator.submit({"health": True})).output["engine_pid"]
        os.kill(engine, signal.SIGSTOP)
        held = [emulator.submit({"text": f"text {index}"}) for index in range(3)]
        while any(record.taken is None for record in held):
            time.sleep(0.01)
        os.kill(engine, signum)
        assert [emulator.wait(record).error for record in held] == [sentence] * 3
        assert worker.process.wait(20) == 1
        assert emulator.workers["worker-1"].unhealthy is not None
        assert not Path(f"/proc/{engine}").exists()


def test_an_engine_that_hangs_ends_the_worker_of_the_stock_loop_as_well(emulator: EmulatorThread, small_bundle: Path):
    chaos = [sys.executable, str(Path(__file__).parent / "chaos_worker.py")]
    env = {
        "BUNDLE": str(small_bundle),
        "ENGINE": "fake",
        "WORKER_LOOP": "sdk",
        "ENGINE_TIMEOUT_S": "1",
        "CHAOS_HANG": str(toy_tokenizer().token_to_id("fox")),
    }
    with WorkerProcess(emulator, chaos, env) as worker:
        for _ in range(3):  # from the third one on a lone row would run on the event loop
            assert emulator.wait(emulator.submit({"text": "the dog"})).status == "COMPLETED"
        sentence = (
            r"worker fault: the engine did not end a batch of \d rows? up to \d long within 1 s .*; raise that where"
        )
        for text in ("the fox", "taken before it exits"):
            assert re.match(sentence, emulator.wait(emulator.submit({"text": text}), 15).error)
        assert worker.process.wait(20) == 1


def test_a_job_that_takes_too_long_fails(emulator: EmulatorThread, small_bundle: Path):
    with WorkerProcess.ours(emulator, small_bundle, env={"JOB_TIMEOUT_S": "1"}):
        engine = emulator.wait(emulator.submit({"health": True})).output["engine_pid"]
        os.kill(engine, signal.SIGSTOP)
        late = emulator.wait(emulator.submit({"text": "a"}))
        assert late.error == "worker fault: the job took longer than 1.0 s (JOB_TIMEOUT_S)"
        os.kill(engine, signal.SIGCONT)
        assert emulator.wait(emulator.submit({"text": "a"})).status == "COMPLETED"


@pytest.mark.parametrize("stream", [False, True])
def test_a_job_that_takes_too_long_fails_in_the_stock_loop_as_well(
    emulator: EmulatorThread, small_bundle: Path, stream: bool
):
    env = {"WORKER_LOOP": "sdk", "MAX_QUEUE_DELAY_MS": "10000", "JOB_TIMEOUT_S": "0.3"}
    with WorkerProcess.ours(emulator, small_bundle, env=env):  # one row waits for others
        late = emulator.wait(emulator.submit({"text": "a", "stream": stream}))
        assert late.error == "worker fault: the job took longer than 0.3 s (JOB_TIMEOUT_S)"
        full = emulator.wait(emulator.submit({"texts": ["a"] * 32}))
        assert full.status == "COMPLETED"


def test_the_heartbeat_names_running_jobs_and_ends_with_the_worker(emulator: EmulatorThread, small_bundle: Path):
    with WorkerProcess.ours(emulator, small_bundle, env={"RUNPOD_PING_INTERVAL": "1000"}) as worker:
        # A result that cannot be delivered keeps its job in progress.
        emulator.inject("job-done", Fault(status=500), times=None)
        record = emulator.submit({"text": "a"})
        deadline = time.monotonic() + 30
        while not any(record.id in ping.get("job_id", "") for ping in list(emulator.workers["worker-1"].pings)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        emulator.call(lambda running: running.faults.clear())
        assert emulator.wait(record).status == "COMPLETED"
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait()
        time.sleep(0.5)
        pings = emulator.workers["worker-1"].ping_count
        time.sleep(1.5)
        assert emulator.workers["worker-1"].ping_count == pings


def test_the_stock_loop_s_pings_end_with_a_worker_that_is_killed(emulator: EmulatorThread, small_bundle: Path):
    with WorkerProcess.ours(emulator, small_bundle, env={"WORKER_LOOP": "sdk", "ENGINE": "fake"}) as worker:
        (pings,) = psutil.Process(worker.process.pid).children()
        worker.process.kill()
        worker.process.wait()
        wait_until_dead(pings.pid)


def test_a_second_signal_after_a_stop_of_the_stock_loop_changes_nothing(small_bundle: Path):
    """Python gives its handlers up before it takes the modules down."""
    code = """if True:
        import os, runpy, signal
        class Late:
            def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGTERM):
                kill(me, number)
        late = Late()
        runpy.run_module("handler", run_name="__main__", alter_sys=True)
    """
    env = {"BUNDLE": str(small_bundle), "WORKER_LOOP": "sdk", "ENGINE": "fake"}
    with (
        EmulatorThread(long_poll_s=0.2) as emulator,  # a stop waits for both
        WorkerProcess(emulator, [sys.executable, "-c", code], env) as worker,
    ):
        assert worker.stop(30) is not None
        assert worker.process.returncode == 0


@pytest.mark.parametrize("busy", [False, True])
def test_sigterm_ends_the_worker_cleanly(emulator: EmulatorThread, small_bundle: Path, busy: bool):
    with WorkerProcess.ours(emulator, small_bundle, env={"MAX_CONCURRENCY": "1"}) as worker:
        records = [emulator.submit({"texts": ["the quick brown fox"] * 2000}) for _ in range(6 if busy else 0)]
        while busy and records[0].taken is None:
            time.sleep(0.001)
        assert worker.stop(30) is not None
        assert worker.process.returncode == 0
        assert all(record.status in ("COMPLETED", "IN_QUEUE") for record in records)
        assert not busy or records[0].status == "COMPLETED"


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"BUNDLE": "/no/such/folder"}, "/no/such/folder is not a bundle"),
        ({"ENGINE": "warp"}, "ENGINE='warp' is not allowed; set it to one of"),
        ({"ENGINE": "onnxruntime-cuda"}, "ENGINE=onnxruntime-cuda cannot run here: no CUDA driver"),
    ],
)
def test_what_cannot_start_says_why_and_exits_with_1(small_bundle: Path, env: dict[str, str], sentence: str):
    done = start(small_bundle, env=env)
    assert done.returncode == 1
    assert f"cannot start: {sentence}" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "tokenizer.json", "graphs/model/fp32.onnx"])
def test_a_damaged_bundle_is_refused_before_anything_in_it_is_read(small_bundle: Path, name: str):
    raw = bytearray((small_bundle / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (small_bundle / name).write_bytes(raw)
    done = start(small_bundle)
    assert done.returncode == 1
    assert "cannot start: " in done.stdout
    assert "does not match" in done.stdout


@pytest.mark.parametrize("damaged", ["scale", "axis"])
def test_weights_that_are_hashed_while_the_engine_loads_are_refused(small_bundle: Path, damaged: str):
    """Also where the engine has failed on them before: with an axis that there is not, it cannot run."""
    graph = move_weights_out(small_bundle, integers=True)
    stored = onnx.load(graph, load_external_data=False).graph.initializer
    where = {one.name: int(next(e.value for e in one.external_data if e.key == "offset")) for one in stored}
    weights = graph.with_name("weights.bin")
    raw = bytearray(weights.read_bytes())
    raw[where[damaged]] ^= 0x40
    weights.write_bytes(raw)
    done = start(small_bundle)
    assert done.returncode == 1
    assert done.stdout.count("cannot start: ") == 1
    assert "weights.bin does not match the SHA-256 in the manifest" in done.stdout
    assert "ONNX Runtime failed" not in done.stdout


def test_files_of_engines_that_are_not_used_are_not_read(small_bundle: Path):
    """Of the weights of another precision, and of a plan for a GPU, not even one that was changed."""
    weights = move_weights_out(small_bundle).with_name("other.bin")
    weights.write_bytes(b"weights")
    add_plan(small_bundle)
    for path in (weights, next(small_bundle.rglob("*.plan"))):
        path.write_bytes(bytes(path.stat().st_size))
    done = start(small_bundle, "--test_input", '{"input": {"text": "hello"}}')
    assert done.returncode == 0, done.stdout
    assert "'dimensions': 8" in done.stdout
    found = subprocess.run(
        [sys.executable, "-m", "engine", "inspect", str(small_bundle), "--verify"], capture_output=True, text=True
    )
    assert found.returncode == 2
    assert "does not match the SHA-256" in found.stderr


def start(
    bundle: Path, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "handler", *arguments],
        cwd=cwd,
        env={**os.environ, "BUNDLE": str(bundle), **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_test_input_runs_one_job_locally(small_bundle: Path):
    done = start(small_bundle, "--test_input", '{"input": {"text": "the fox", "dimensions": 2}}')
    assert done.returncode == 0, done.stdout
    assert "'dimensions': 2" in done.stdout
    failed = start(small_bundle, "--test_input", '{"input": {"text": 1}}')
    assert failed.returncode == 1
    assert "`text` must be a string" in failed.stdout


@pytest.mark.parametrize(
    ("wrong", "options"),
    [
        ({"WORKER_LOOP": "events", "RUNPOD_LOG_LEVEL": "WARNING"}, ("--test_input", '{"input": {"text": "a"}}')),
        ({"WORKER_LOOP": "sdk", "RUNPOD_LOG_LEVEL": " ", "RUNPOD_DEBUG_LEVEL": "2"}, ("--rp_serve_api",)),
    ],
)
def test_a_log_level_that_the_sdk_has_not_is_refused_before_the_boot(
    small_bundle: Path, wrong: dict[str, str], options: tuple[str, ...]
):
    done = start(small_bundle, *options, env=wrong)
    name, value = list(wrong.items())[-1]
    assert done.stdout.startswith(f"ERROR | cannot start: {name}='{value}' is not allowed; set it to one of ERROR,")
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (1, 1, "")


def test_the_sdks_older_name_of_its_level_counts_where_the_newer_one_is_empty(small_bundle: Path):
    env = {"RUNPOD_LOG_LEVEL": "", "RUNPOD_DEBUG_LEVEL": "warn", "RUNPOD_PING_INTERVAL": ""}
    done = start(small_bundle, "--test_input", '{"input": {"text": "a"}}', env=env)
    assert done.returncode == 0, done.stdout
    assert "INFO" not in done.stdout  # the worker's, and the SDK's


def test_test_input_json_is_found(small_bundle: Path, tmp_path: Path):
    """In the working directory, where the SDK looks for it; the repository's own may be for another task."""
    assert json.loads(Path("test_input.json").read_text())["input"]
    (tmp_path / "test_input.json").write_text('{"input": {"text": "the fox", "dimensions": 2}}')
    done = start(small_bundle, env={"PYTHONPATH": os.getcwd(), "MAX_ITEM": "1"}, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "WARN  | MAX_ITEM is no setting and changes nothing; did you mean MAX_ITEMS?" in done.stdout
    assert done.stdout.count("'dimensions': 2") == 1  # the SDK's DEBUG lines would show it thrice


def test_ctrl_c_in_a_local_job_is_no_success(small_bundle: Path):
    """Nor does the interpreter end under an engine that runs: some threads of native code take that for a crash."""
    code = """if True:
        import asyncio, os, signal, sys, handler.stock
        async def interrupted(job):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        handler.stock.answers = lambda *_: interrupted
        from handler.__main__ import main
        sys.exit(main())
    """
    command = [sys.executable, "-c", code, "--test_input", '{"input": {"text": "a"}}']
    env = {**os.environ, "BUNDLE": str(small_bundle), "ENGINE": "fake"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout.endswith("| Started.\nINFO  | interrupted\n")


def test_ctrl_c_that_a_library_swallows_while_it_is_imported_ends_the_boot(small_bundle: Path):
    code = """if True:
        import os, signal, sys, handler.boot
        kept = handler.boot.boot
        def boot(*arguments, **options):
            try: os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt: pass
            return kept(*arguments, **options)
        handler.boot.boot = boot
        from handler.__main__ import main
        sys.exit(main())
    """
    command = [sys.executable, "-c", code, "--test_input", '{"input": {"text": "a"}}']
    env = {**os.environ, "BUNDLE": str(small_bundle), "ENGINE": "fake"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "INFO  | interrupted\n", "")


def answered_to(output: IO[str], bundle: Path) -> tuple[int, str]:
    """Exit code and stderr of a worker that answers one job to `output`."""
    done = subprocess.run(
        [sys.executable, "-m", "handler", "--test_input", '{"input": {"text": "a"}}'],
        env={**os.environ, "BUNDLE": str(bundle), "ENGINE": "fake"},
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_an_output_that_nobody_reads_any_more_is_no_traceback(small_bundle: Path):
    """As `| head` leaves it."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as output:
        os.close(reader)
        assert answered_to(output, small_bundle) == (130, "")


def test_an_answer_that_cannot_be_written_is_one_sentence(small_bundle: Path):
    said = "cannot go on: the output cannot be written (No space left on device); send it elsewhere\n"
    with open("/dev/full", "w") as output:
        assert answered_to(output, small_bundle) == (1, said)


def test_rp_serve_api_that_cannot_listen_says_so(small_bundle: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = start(small_bundle, "--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", port)
    assert done.returncode == 1
    assert "ERROR | cannot start: the RunPod SDK's server cannot listen, as its line above says; see" in done.stdout
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_rp_serve_api_answers_on_localhost_whether_or_not_its_lines_are_read(small_bundle: Path):
    with held_port() as port:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "handler",
                "--rp_serve_api",
                "--rp_api_port",
                str(port),
                "--rp_api_host",
                "127.0.0.1",
            ],
            env={**os.environ, "BUNDLE": str(small_bundle)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout
        try:
            for _ in range(300):
                try:
                    reply = requests.post(f"http://127.0.0.1:{port}/runsync", json={"input": {"text": "a"}}, timeout=10)
                    break
                except requests.ConnectionError:
                    time.sleep(0.1)
            assert reply.json()["status"] == "COMPLETED"
            assert len(reply.json()["output"]["embedding"]) == 8
            process.stdout.close()
            job: Any = {"input": {"texts": ["a", "b"], "stream": True}}
            (part,) = requests.post(f"http://127.0.0.1:{port}/runsync", json=job, timeout=10).json()["output"]
            assert len(part["embeddings"]) == 2
        finally:
            process.terminate()
            process.wait(20)
