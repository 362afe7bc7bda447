"""Wrong arguments of `python -m benchmarks`: a sentence, exit code 2, and nothing measured."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import arguments, engines
from benchmarks.__main__ import main
from benchmarks.engines import prepare
from engine.bundle import open_bundle, write_manifest
from engine.plans.sidecar import PRECISIONS
from engine.tensors import TensorSpec
from export.plans.precision import add_precision
from tests.processes import interrupted_while_it_imports, wait_until_dead


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("tasks --task no-task", "tasks: no model of 'no-task' in benchmarks/zoo; there are: audio-classification"),
        ("models --architecture nope", "models: no model of 'nope' in benchmarks/zoo; there are: "),
        ("report --out {file}", "report: [Errno 17] File exists"),
        (
            "load --clients --rates 1e9",
            "load: a loop of --rates and --seconds has 10000000 jobs at most; name smaller ones",
        ),
    ],
)
def test_what_cannot_be_done_is_a_sentence(command: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "file"
    file.touch()
    assert main(command.format(file=file).split()) == 2
    assert capsys.readouterr().err.startswith(said)


def test_a_worker_that_does_not_start_says_why(small_bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["coldstart", "--warm-only", "--engine", "tensorrt", "--bundle", str(small_bundle)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("coldstart: the worker ended with exit code 1 before it took a job; it said last: ")
    assert "cannot start" in said


def test_a_demo_that_cannot_be_exported_has_measured_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("benchmarks.demo.minilm_folder", lambda: tmp_path / "nothing")
    assert main(["demo", "--out", str(tmp_path / "bundle")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("demo: ")


def test_results_that_find_no_room_are_a_sentence(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (full := tmp_path / "full.json").symlink_to("/dev/full")
    short = "batching --engine fake --rounds 1 --bulk-rows 4 --seconds 0.1".split()
    assert main([*short, "--bundle", str(small_bundle), "--json", str(full)]) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == f"batching: {full} cannot be written (No space left on device)"
    assert "| ours-fake, bulk " in printed.out


def test_output_that_nobody_reads_is_no_failure_to_talk_about():
    command = [sys.executable, "-m", "benchmarks", "compare", *["benchmarks/results/peers-cpu.json"] * 2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("emulator --port 99999", "argument --port: '99999' is not a port from 0 to 65535"),
        ("recommend f.json --p99-ms x --price-per-hour 1", "argument --p99-ms: 'x' is not a number above 0"),
        ("load --bundle /no/such", "argument --bundle: /no/such is not a bundle (no such folder); make one with"),
        ("coldstart --runs 0", "argument --runs: '0' is not a whole number from 1 to"),
        ("coldstart --engine cuda", "argument --engine: invalid choice: 'cuda'"),
        ("peers --tei localhost:8080", "argument --tei: 'localhost:8080' is no address such as http://localhost:8080"),
        ("load --rounds 9999999999999", "argument --rounds: '9999999999999' is not a whole number from 1 to"),
        ("load --idle-jobs -1", "argument --idle-jobs: '-1' is not a whole number from 0 to"),
        ("load --clients 8 x", "argument --clients: 'x' is not a whole number from 1 to"),
        ("load --rates 50% nan%", "argument --rates: 'nan%' is neither a number of jobs/s nor a percentage"),
        ("load --seconds inf", "argument --seconds: 'inf' is not a number of seconds above 0 and up to 86400"),
        ("throughput --batches 8,", "argument --batches: '8,' is not a list of whole numbers from 1 up"),
        ("throughput --lengths max,", "argument --lengths: 'max,' is not a list of whole numbers from 1 up, or max"),
        ("throughput --lengths ,16", "argument --lengths: ',16' is not a list of whole numbers from 1 up, or max"),
        ("throughput --precisions fp8", "argument --precisions: there is no precision 'fp8'; known are fp32, tf32"),
        ("throughput --duration nan", "argument --duration: 'nan' is not a number from 0 up"),
        ("throughput --percentile 101", "argument --percentile: '101' is not a list of percentages from 0 to 100"),
        ("throughput --plan-options '", 'argument --plan-options: "\'" cannot be taken apart as a shell does'),
        ("large --precision nope", "argument --precision: invalid choice: 'nope'"),
        ("compare a b --effect x", "argument --effect: 'x' is not between 0 and 1"),
        ("gpu --out o --smoke /no/such", "argument --smoke: there is no file /no/such"),
        ("distance --rtt-ms 0", "argument --rtt-ms: '0' is not a number above 0"),
        ("memory --model /no/such", "argument --model: there is no folder /no/such"),
        ("soak --json {folder}", "argument --json: {folder} is a folder; name a file"),
        ("soak --json {file}/a/b.json", "argument --json: {file}/a/b.json cannot be written: {file} is no folder"),
        ("demo --out {folder}", "argument --out: {folder} holds something else than a bundle; name a new or empty"),
    ],
)
def test_what_is_no_value_is_told_by_the_parser(
    command: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    command, said = (text.format(folder=tmp_path, file=tmp_path / "file") for text in (command, said))
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing was made, and nothing taken away


_EMBEDDING = "name a bundle for feature-extraction or sentence-similarity"
_TEXTS = f"name a bundle for {', '.join(arguments.TEXTS[:-1])} or {arguments.TEXTS[-1]}"  # a fork adds its own


@pytest.mark.parametrize(
    ("command", "task", "said"),
    [
        ("batching", "text-classification", _EMBEDDING),
        ("coldstart", "question-answering", _TEXTS),
        ("distance --with none", "image-classification", _TEXTS),
        ("load", "zero-shot-image-classification", _TEXTS),
        ("memory --with none", "fill-mask", _EMBEDDING),
        ("peers --with none", "image-transform", _EMBEDDING),
        ("quick", "sparse-encoder", _EMBEDDING),
        ("soak", "image-classification", _EMBEDDING),
        ("throughput", "image-classification", "name a bundle of one graph that reads nothing but tokens, such as"),
        ("throughput", "image-transform", "name a bundle of one graph that reads nothing but tokens, such as"),
    ],
)
def test_a_bundle_whose_task_is_not_measured_is_refused(
    command: str, task: str, said: str, small_bundle: Path, capsys: pytest.CaptureFixture[str]
):
    manifest = open_bundle(small_bundle).manifest
    graphs = {} if task == "image-transform" else dict(manifest.graphs)
    if task == "image-classification":
        pixels = TensorSpec("pixels", "uint8", ("batch", 8, 8, 3))
        graphs = {"model": replace(graphs["model"], inputs=(pixels,))}
    write_manifest(small_bundle, replace(manifest, task=task, graphs=graphs))
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--bundle", str(small_bundle)])
    assert ended.value.code == 2
    assert f"argument --bundle: {small_bundle} is for {task}; {said}" in capsys.readouterr().err


def test_a_bundle_whose_task_is_measured_is_taken(small_bundle: Path):
    manifest = open_bundle(small_bundle).manifest
    for task in arguments.TEXTS:
        write_manifest(small_bundle, replace(manifest, task=task))
        read = (arguments.bundle_for(arguments.TEXTS), arguments.bundle_of_tokens)
        assert [one(str(small_bundle)) for one in read] == [small_bundle, small_bundle]


def test_a_file_in_a_folder_yet_to_be_made_and_a_bundle_made_again(small_bundle: Path, tmp_path: Path):
    assert arguments.new_file(str(tmp_path / "new" / "a.json")) == tmp_path / "new" / "a.json"
    assert arguments.bundle_to_make(str(small_bundle)) == small_bundle
    assert arguments.bundle_to_make(str(tmp_path / "new")) == tmp_path / "new"


def test_every_default_is_told_in_one_way():
    root = Path(__file__).parents[2]
    for file in [*root.glob("benchmarks/**/*.py"), *root.glob("export/**/*.py"), *root.glob("handler/**/*.py")]:
        for before in re.findall(r"(.{10})%\(default\)", file.read_text()):
            assert before == "(default: ", f"{file.name}: {before}"


def test_a_precision_that_there_is_not_is_not_measured_as_another(small_bundle: Path):
    with pytest.raises(RuntimeError, match="there is no precision 'fp8'; take of fp32, tf32, fp16, bf16, int8"):
        prepare(small_bundle, "onnxruntime-cpu", "fp8", [1], [16], "")


@pytest.mark.parametrize(
    ("engine", "runs"),
    [
        ("onnxruntime-cpu", {"fp32", "fp16", "int8"}),
        ("onnxruntime-cuda", {"fp32", "fp16"}),
        ("tensorrt", set(PRECISIONS)),
    ],
)
def test_what_an_engine_would_compute_in_another_precision_is_refused(engine: str, runs: set[str], small_bundle: Path):
    assert {one for one in PRECISIONS if engines.runs(engine, one)} == runs
    for one in set(PRECISIONS) - runs:
        with pytest.raises(RuntimeError, match=f"{engine} cannot run {one}; take another precision"):
            prepare(small_bundle, engine, one, [1], [16], "")


def test_the_precision_asked_for_is_opened_whatever_the_bundle_s_for_cuda_is(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    add_precision(small_bundle, "model", "fp16")
    manifest = open_bundle(small_bundle).manifest
    write_manifest(small_bundle, replace(manifest, precisions={"cpu": "fp32", "cuda": "fp16"}))
    opened = "engine.backends.onnxruntime_cuda.OnnxRuntimeCudaEngine"
    monkeypatch.setattr(opened, lambda bundle, **_: bundle.onnx_of("model", "cuda")[0])
    for one in ("fp32", "fp16"):
        found: object = engines.open_engine(small_bundle, "onnxruntime-cuda", one, [1], [16])
        assert found == f"graphs/model/{one}.onnx"


def test_ctrl_c_is_a_sentence_and_reaches_no_process_that_a_command_started():
    """A terminal sends SIGINT to the whole process group."""
    script = (
        "import os, signal, sys, time\n"
        "from benchmarks import throughput\n"
        "from benchmarks.__main__ import main\n"
        "from benchmarks.targets.pipe import PipeProcess\n"
        "child = 'import sys; print(\\'{}\\', flush=True); sys.stdin.read()'\n"
        "def interrupted(args):\n"
        "    with PipeProcess([sys.executable, '-c', child], log=None):\n"
        "        os.killpg(0, signal.SIGINT)\n"
        "        time.sleep(10)\n"
        "throughput.main = interrupted\n"
        "sys.exit(main(['throughput']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, process_group=0, cwd=Path.cwd()
    )
    assert (done.returncode, done.stderr) == (130, "throughput: interrupted\n")


def test_a_second_signal_does_not_cut_short_what_the_first_one_ends():
    """`timeout` of coreutils sends its signal twice, microseconds apart."""
    code = """if True:
        import os, runpy, signal, sys
        from benchmarks import throughput
        from benchmarks.targets import pipe
        kill_tree = pipe.kill_tree
        def interrupted_kill(process):
            os.kill(os.getpid(), signal.SIGTERM)
            kill_tree(process)
        pipe.kill_tree = interrupted_kill
        def interrupted(args):
            child = "import time; print({}, flush=True); time.sleep(60)"
            with pipe.PipeProcess([sys.executable, "-c", child]) as started:
                print(started.process.pid, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
        throughput.main = interrupted
        runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
    """
    done = subprocess.run([sys.executable, "-c", code, "throughput"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "throughput: interrupted\n")
    wait_until_dead(int(done.stdout))


@pytest.mark.parametrize("module", ["argparse", "aiohttp"])
def test_ctrl_c_while_it_imports_is_no_traceback(module: str):
    done = interrupted_while_it_imports(module, "benchmarks", "emulator")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
