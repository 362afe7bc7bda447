"""Targets: what is spoken over pipes and HTTP, and that nothing is left running."""

from __future__ import annotations

import asyncio
import json
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
import pytest
from aiohttp import web

from benchmarks import coldstart, peer_env
from benchmarks.floor import Floor
from benchmarks.floor_files import files
from benchmarks.targets import library, queue_worker
from benchmarks.targets.base import Running
from benchmarks.targets.catalogue import Needs, targets
from benchmarks.targets.dialects import OPENAI, SDK_TEST_SERVER, TEI, triton
from benchmarks.targets.http_server import HttpServer, RemoteServer
from benchmarks.targets.in_process import Library
from benchmarks.targets.pipe import PipeProcess
from benchmarks.targets.queue_worker import Command, Made, QueueWorker
from engine import probe
from engine.bundle import open_bundle, write_manifest
from engine.probe import Gpu
from engine.tasks import load_task


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# Pipes


def test_a_process_that_ends_before_it_is_ready_says_how():
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
        PipeProcess(python("raise SystemExit(3)"))


def test_a_process_that_says_nothing_is_given_up():
    with pytest.raises(RuntimeError, match=r"did not answer within 0\.2 s"):
        PipeProcess(python("import time; time.sleep(60)"), timeout_s=0.2)


def test_answers_errors_and_the_end():
    code = (
        "import sys, json\nprint(json.dumps({'ready': True}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        "    if asked['n'] == 9: sys.exit(4)\n"
        "    print(json.dumps({'error': 'seven'} if asked['n'] == 7 else {'n': asked['n'] * 2}), flush=True)\n"
    )
    with PipeProcess(python(code)) as process:
        assert process.hello == {"ready": True}
        assert process.ready_s > 0
        assert process.ask({"n": 4}) == {"n": 8}
        with pytest.raises(RuntimeError, match="seven"):
            process.ask({"n": 7})
        assert process.memory_mb()["rss_mb"] > 1
        with pytest.raises(RuntimeError, match="ended with exit code 4"):
            process.ask({"n": 9})
    with PipeProcess(python(code)) as process:
        took = process.stop(10.0)
    assert took is not None and took < 10


def test_what_is_answered_too_late_is_no_answer_to_the_next_question():
    code = "import time, sys\nprint('{}', flush=True)\nfor line in sys.stdin:\n    time.sleep(1)\n    print(line)\n"
    with PipeProcess(python(code)) as process:
        with pytest.raises(RuntimeError, match=r"did not answer within 0\.2 s"):
            process.ask({"n": 1}, timeout_s=0.2)
        assert process.process.poll() is not None
        with pytest.raises(RuntimeError, match="was ended when it did not answer"):
            process.ask({"n": 2})


def test_the_floor_answers_over_its_pipe(small_bundle: Path):
    (floor,) = targets(["floor"], Needs(model=small_bundle, bundle=small_bundle))
    assert set(floor.prepare()) == {"onnxruntime", "tokenizers", "numpy"}
    many = ["the quick brown fox jumps", "a", "lazy dog over the", "b c d e"] * 6
    with floor.start() as running:
        vectors = running.embed(many)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
        alone = np.concatenate([running.embed([text]) for text in many])
        np.testing.assert_allclose(vectors, alone, atol=1e-5)  # sorted inside, and back in order
        answers = running.closed_loop(1, 0.1)
        assert answers is not None and len(answers.ms) > 0
        assert running.closed_loop(32, 0.1) is None
        assert len(running.one_by_one(many[:3], 0.0).ms) == 3
        assert running.stop(10.0) is not None


def test_a_worker_that_dies_is_told_without_waiting_for_its_answers(small_bundle: Path):
    (ours,) = targets(["ours"], Needs(model=small_bundle, bundle=small_bundle, engine="fake"))
    asks: tuple[Callable[[Running], object], ...] = (
        lambda running: running.embed(["a"]),
        lambda running: running.one_by_one(["a"], 0.0),
        lambda running: running.closed_loop(1, 0.1),
    )
    with ours.start() as running:
        assert running.pid
        assert len(running.embed(["a", "b"])) == 2
        psutil.Process(running.pid).kill()
        for ask in asks:
            with pytest.raises(RuntimeError, match="the worker was killed by signal 9 in the middle of its work"):
                ask(running)


def test_a_worker_finds_its_first_job_waiting(small_bundle: Path):
    """One that is sent when it is seen to be ready waits for whoever looks."""
    (ours,) = targets(["ours"], Needs(model=small_bundle, bundle=small_bundle, engine="fake"))
    assert isinstance(ours, QueueWorker)
    with ours.start("a") as running:
        assert isinstance(running, queue_worker._Running)
        (job,) = running._clients.emulator.jobs.values()
        assert running.started is not None and job.done is not None and job.submitted < running.started
        assert running.first_answer_s == job.done - running.started
    with ours.start() as running:
        assert running.first_answer_s is None
        assert isinstance(running, queue_worker._Running)
        assert not running._clients.emulator.jobs


def test_floors_do_the_work_of_a_default_prompt(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As the worker does, which puts it before every text of a job that names none."""
    manifest = open_bundle(small_bundle).manifest
    write_manifest(small_bundle, replace(manifest, task_config={**manifest.task_config, "default_prompt": "query"}))
    texts = ["fox jumps", "a lazy dog"]
    task = load_task(open_bundle(small_bundle))
    rows = [list(row.feeds["input_ids"]) for row in task.preprocess(task.parse({"texts": texts}))]
    asked: list[list[int]] = []
    real = ort.InferenceSession

    class Session:
        def __init__(self, *arguments: Any, **named: Any) -> None:
            self.real = real(*arguments, **named)
            self.get_inputs = self.real.get_inputs

        def run(self, outputs: Any, feeds: dict[str, Any]) -> Any:
            asked.extend(
                [*row[mask > 0]] for row, mask in zip(feeds["input_ids"], feeds["attention_mask"], strict=True)
            )
            return self.real.run(outputs, feeds)

    monkeypatch.setattr(ort, "InferenceSession", Session)
    Floor(small_bundle).one_by_one(texts)
    assert asked[-2:] == rows
    Floor(small_bundle).in_batches(texts)
    assert asked[-2:] == rows
    (floor,) = targets(["floor"], Needs(model=small_bundle, bundle=small_bundle))
    assert isinstance(floor, Library)
    library.LIBRARIES["onnxruntime"](*floor.made().command[3:])(texts)
    assert asked[-2:] == rows
    heard = tmp_path / "heard"
    script = tmp_path / "boot.py"
    script.write_text(f"import sys\nprint('{{}}', flush=True)\nopen({str(heard)!r}, 'w').write(sys.argv[-1])\nprint(1)")
    monkeypatch.setattr(coldstart, "_FLOOR", script)
    coldstart.start_floor(small_bundle)
    assert heard.read_text().startswith("the quick ")


def test_floors_run_on_the_cpu_whatever_the_installed_onnxruntime_can(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """One for GPUs would else take its GPU, or warn that it must be told."""
    asked: list[object] = []
    real = ort.InferenceSession

    def session(*arguments: Any, **named: Any) -> ort.InferenceSession:
        asked.append(named.get("providers"))
        return real(*arguments, **named)

    monkeypatch.setattr(ort, "InferenceSession", session)
    opened = files(open_bundle(small_bundle))
    given = [str(opened.graph), str(int(opened.fused)), str(opened.tokenizer)]
    Floor(small_bundle)
    library.LIBRARIES["onnxruntime"](*given, "", "32", "1")
    monkeypatch.setattr(sys, "argv", ["floor_boot.py", *given, "1", "a text"])
    runpy.run_path(str(Path(library.__file__).with_name("floor_boot.py")))
    assert asked == [["CPUExecutionProvider"]] * 3
    assert "first answer" in capsys.readouterr().out


TORCH = [
    "stock", "infinity", "infinity-http", "litserve",
    "sentence-transformers", "transformers-pipeline", "torch-eager", "torch-compile",
]  # fmt: skip


@pytest.fixture
def torch_for_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\ncase $2 in *torch.cuda*) echo 2.13.0+cpu False;; *) echo {};; esac\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(peer_env, "python_of", lambda of: python)
    monkeypatch.setattr(probe, "gpu", lambda: Gpu("NVIDIA L4", (8, 9)))


@pytest.mark.usefixtures("torch_for_the_cpu")
@pytest.mark.parametrize("name", TORCH)
def test_a_torch_without_the_gpu_is_not_set_beside_a_worker_on_it(
    name: str, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(probe, "onnxruntime_providers", lambda: ("CUDAExecutionProvider", "CPUExecutionProvider"))
    (target,) = targets([name], Needs(model=small_bundle, bundle=small_bundle))
    sentence = (
        r"has torch 2\.13\.0\+cpu, which sees no GPU, beside which ours would run; .* \(--engine onnxruntime-cpu\)"
    )
    with pytest.raises(RuntimeError, match=sentence):
        target.prepare()


@pytest.mark.usefixtures("torch_for_the_cpu")
@pytest.mark.parametrize("engine", ["auto", "onnxruntime-cpu"])
@pytest.mark.parametrize("name", TORCH)
def test_a_torch_is_on_the_cpu_beside_a_worker_that_is(
    name: str, engine: str, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whether the machine has a GPU or not: ours needs packages for it, or is told."""
    providers = ("CPUExecutionProvider", *(["CUDAExecutionProvider"] if engine != "auto" else []))
    monkeypatch.setattr(probe, "onnxruntime_providers", lambda: providers)
    (target,) = targets([name], Needs(model=small_bundle, bundle=small_bundle, engine=engine))
    assert isinstance(target, Made)
    command = target.made()
    assert (command.env["DEVICE"], command.env["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")
    assert "cuda" not in command.command


# HTTP


@pytest.fixture
def served() -> Iterator[Callable[[web.Application], str]]:
    """Serves applications from a thread; gives each one's address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runners: list[web.AppRunner] = []

    async def start(app: web.Application) -> str:
        runner = web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield lambda app: asyncio.run_coroutine_threadsafe(start(app), loop).result(10)
    for runner in runners:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_server_of_the_users_own_is_asked_in_pieces(served: Callable[[web.Application], str]):
    """As Text Embeddings Inference has it: at most 32 inputs a request."""
    sizes: list[int] = []
    pause_s = [0.0]

    async def embed(request: web.Request) -> web.Response:
        inputs = (await request.json())["inputs"]
        sizes.append(len(inputs))
        await asyncio.sleep(pause_s[0] if len(sizes) > 10 else 0.0)  # not those that warm up
        if "bad" in inputs:
            return web.Response(status=413, text="too long")
        return web.json_response([[float(len(text)), 1.0] for text in inputs])

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.add_routes([web.post("/embed", embed), web.get("/health", health)])
    target = RemoteServer("tei", TEI, served(app))
    assert target.prepare() == {}
    with target.start() as running:
        vectors = running.embed(["x" * length for length in range(1, 71)])
        assert vectors[:, 0].tolist() == list(range(1, 71))
        assert sorted(sizes) == [6, 32, 32]
        answers = running.closed_loop(4, 0.2)
        assert answers is not None and len(answers.ms) > 4 and answers.errors == []
        sizes.clear()
        pause_s[0] = 0.3
        late = running.closed_loop(4, 0.2)
        assert late is not None and late.ms == [] and len(late.late_ms) == 4
        assert (late.summary()["jobs_per_s"], late.summary()["p50_ms"] > 200) == (0, True)
        pause_s[0] = 0.0
        failed = running.one_by_one(["bad", "good"], 0.0)
        assert (len(failed.ms), len(failed.errors)) == (1, 1)
        assert "HTTP 413, too long" in failed.errors[0]
        assert (running.started, running.memory_mb(), running.stop(1.0)) == (None, {}, None)


def test_a_server_that_takes_a_request_and_does_not_answer_is_not_waited_for(
    served: Callable[[web.Application], str],
):
    async def health(request: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/health", health)])
    with pytest.raises(RuntimeError, match=r"/health was not ready within 0\.2 s"):
        RemoteServer("tei", TEI, served(app), timeout_s=0.2).prepare()


def test_triton_gets_tokens_and_gives_back_what_the_graph_says(small_bundle: Path):
    bundle = open_bundle(small_bundle)
    dialect = triton("toy", bundle.file("tokenizer.json"), 32)
    texts = ["the quick brown fox", "a b"]
    asked = json.loads(json.dumps(dialect.ask(texts)))
    feeds = {
        one["name"]: np.array(one["data"], np.int32).reshape(one["shape"])
        for one in asked["inputs"]
        if one["name"] != "token_type_ids"  # which the toy has not
    }
    assert all(one["datatype"] == "INT32" for one in asked["inputs"])
    session: Any = ort.InferenceSession(str(files(bundle).graph))
    expected = session.run(None, feeds)[0]
    reply = {"outputs": [{"name": "embedding", "shape": list(expected.shape), "data": expected.ravel().tolist()}]}
    np.testing.assert_allclose(dialect.vectors(reply), expected, rtol=1e-6)
    assert (dialect.path, dialect.health) == ("/v2/models/toy/infer", "/v2/models/toy/ready")


def test_requests_and_replies_of_the_other_servers():
    assert OPENAI.ask(["a"])["encoding_format"] == "base64"
    encoded = "AACAPwAAAEA="  # 1.0, 2.0
    assert OPENAI.vectors({"data": [{"embedding": encoded}]}).tolist() == [[1.0, 2.0]]
    assert SDK_TEST_SERVER.ask(["a"]) == {"input": {"text": "a"}}
    assert SDK_TEST_SERVER.vectors({"output": {"embeddings": [encoded]}}).tolist() == [[1.0, 2.0]]


def test_a_server_that_ends_takes_what_it_started_with_it(tmp_path: Path):
    note = tmp_path / "child"
    command = ["sh", "-c", f"sleep 60 & echo $! > {note}; exit 5"]
    target = HttpServer("some", lambda: Command(command, {}), TEI)
    with pytest.raises(RuntimeError, match="ended with exit code 5"), target.start():
        pass
    child = int(note.read_text())
    for _ in range(100):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("the server's child lives on")
