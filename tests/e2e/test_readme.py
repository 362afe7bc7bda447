"""Every command in the README is run, or is on the short list of those that need what a test machine lacks."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from engine.config import Settings
from tests.exports import MINILM

README = Path("README.md").read_text()
COMMANDS = [
    line.strip().partition("  #")[0].strip()
    for line in README.splitlines()
    if re.match(r"    (make|python|docker|curl|[A-Z_]+=\S+ python) ", line)
]

WALK = COMMANDS[COMMANDS.index("python -m export my-model --out bundle") :][:4]
NOT_RUN = {
    "make test": "it is what runs this test",
    f"python -m export {shlex.join(MINILM)} --out bundle": "it makes the bundle of test_embeddings.py",
    "docker build --platform linux/amd64 -t REGISTRY/worker:TAG .": "needs a docker daemon",
    "docker push REGISTRY/worker:TAG": "needs a registry",
    "docker run --rm -e WORKER_LOOP=http -p 8000:80 REGISTRY/worker:TAG": "needs a docker daemon",
    **dict.fromkeys(WALK, "test_a_folder_on_the_disk_becomes_an_image runs them"),
}


def run(command: str, env: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """Run a command of the README, `python` being the one that runs this test; its output."""
    environ = {**os.environ, **(env or {})}
    done = subprocess.run(shell(command), shell=True, cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shell(command: str) -> str:
    return re.sub(r"(^|\s)python ", rf"\1{shlex.quote(sys.executable)} ", command)


def run_until(command: str, sign: str, then: Callable[[], None] = lambda: None) -> None:
    """Start a command that serves, wait for `sign` in its output, go on, and end it with SIGTERM."""
    process = subprocess.Popen(
        f"exec env {shell(command)}", shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    deadline, seen = time.monotonic() + 60, ""
    while sign not in seen:
        line = process.stdout.readline()
        assert line, seen
        assert time.monotonic() < deadline, seen
        seen += line
    try:
        then()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def ask() -> None:
    """The curl command, as far as it is none of a shell's; the server is the command before it."""
    (command,) = (command for command in COMMANDS if command.startswith("curl "))
    _, _, address, _, header, _, body = shlex.split(command)
    request = urllib.request.Request(f"http://{address}", body.encode(), dict([header.split(": ")]))
    with urllib.request.urlopen(request, timeout=30) as reply:
        answer = json.load(reply)
    assert answer["status"] == "COMPLETED"
    assert len(answer["output"]["embedding"]) == 4


RUNNERS: dict[str, Callable[[str, Path], object]] = {
    "make demo": lambda command, tmp: run(command),
    "python -m benchmarks report": lambda command, tmp: run(f"{command} --out {shlex.quote(str(tmp))}"),
    "python -m benchmarks emulator": lambda command, tmp: run_until(command, "curl"),
    "BUNDLE=build/demo/bundle python -m handler --test_input": lambda command, tmp: run(command),
    "BUNDLE=build/demo/bundle python -m handler --rp_serve_api": lambda command, tmp: run_until(
        command, "running on", ask
    ),
}


def test_the_readme_opens_with_the_two_commands():
    assert COMMANDS[:2] == ["make demo", "make test"]


@pytest.mark.timeout(600)  # the first `make demo` exports a model of 90 MB
@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command not in NOT_RUN and command[:5] != "curl "]
)
def test_the_command_runs(command: str, tmp_path: Path):
    (runner,) = [runner for start, runner in RUNNERS.items() if command.startswith(start)]
    runner(command, tmp_path)


def test_a_folder_on_the_disk_becomes_an_image(bert: Path, tmp_path: Path):
    """In another folder than the checkout, which may have a bundle/; with `echo` in docker's place."""
    shutil.copytree(bert, tmp_path / "my-model")
    (tmp_path / "Makefile").write_text(Path("Makefile").read_text())
    exported, inspected, tried, image = WALK
    code = {"PYTHONPATH": str(Path.cwd())}
    run(exported, code, tmp_path)
    assert "my-model" in run(inspected, code, tmp_path)
    run_until(tried.replace("BUNDLE=", f"BUNDLE={shlex.quote(str(tmp_path))}/"), "running on")
    printed = run(f"{image} DOCKER=echo PYTHON={shlex.quote(sys.executable)}", code, tmp_path)
    assert "--build-arg MODEL=my-model " in printed


def test_the_settings_that_are_named_are_there():
    section = README.partition("## Configure it")[2].partition("\n## ")[0]
    named = [
        name for first in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"\w+", first)
    ]
    assert len(named) > 5
    assert set(named) <= {item.metadata["env"] for item in fields(Settings)}


def test_what_is_not_run_is_still_in_the_readme():
    assert set(NOT_RUN) <= set(COMMANDS)


def test_the_payloads_are_what_the_task_takes(small_bundle: Path):
    from engine.bundle import open_bundle
    from engine.tasks import load_task

    task = load_task(open_bundle(small_bundle))
    payloads = [json.loads(line) for line in re.findall(r'^    (\{"input": .*\})$', README, re.MULTILINE)]
    assert len(payloads) == 2
    for payload in payloads:
        payload["input"].pop("dimensions", None)  # more than the small model has
        task.parse(payload["input"])
