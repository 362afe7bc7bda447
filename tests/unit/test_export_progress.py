"""What a user sees while a model is exported."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.sizes import readable
from engine.table import table
from export.__main__ import main
from export.command import interrupts
from export.command.progress import recorded, stage, stages


def test_a_line_a_stage(capsys: pytest.CaptureFixture[str]):
    with stage("onnx") as note:
        note("90.3 MB")
        note("opset 17")
    assert re.fullmatch(r"onnx        \d\.\d s  90\.3 MB, opset 17\n", capsys.readouterr().out)


def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_terminal_shows_a_moving_line_and_then_a_mark(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    terminal(monkeypatch)
    with stage("int8") as note:
        time.sleep(0.15)  # ten times a second it is drawn
        note("0.1 MB")
    said = capsys.readouterr().out
    assert said.count("int8") > 1
    assert re.search(r"✓ int8        \d\.\d s  0\.1 MB\n$", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said))


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_plain_lines_for_who_wants_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
):
    terminal(monkeypatch)
    monkeypatch.setenv(name, value)
    with stage("load"):
        pass
    assert re.fullmatch(r"load        \d\.\d s\n", capsys.readouterr().out)


def test_stages_are_recorded_for_json():
    with recorded() as done:
        with stage("load") as note:
            note("90 MB")
        with pytest.raises(ValueError, match="x"), stage("onnx"):
            raise ValueError("x")
    (one,) = stages(done)
    assert (one["name"], one["notes"]) == ("load", ["90 MB"])


def test_an_interrupt_that_a_library_swallowed_ends_the_stage(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interrupts, "_came", False)
    with pytest.raises(KeyboardInterrupt), stage("load"):
        try:
            interrupts._interrupt(2, None)
        except BaseException:
            pass


def test_a_second_interrupt_cuts_no_clean_up_short_and_raises_again_where_the_first_was_swallowed(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(interrupts, "_came", False)
    with pytest.raises(KeyboardInterrupt):
        try:
            interrupts._interrupt(2, None)
        finally:
            interrupts._interrupt(2, None)
            done = True
    assert done
    with pytest.raises(KeyboardInterrupt):
        interrupts._interrupt(2, None)


def test_a_signal_that_the_export_was_started_to_ignore_stays_ignored(monkeypatch: pytest.MonkeyPatch):
    """As nohup starts it, whose user then logs out."""
    installed: dict[int, Any] = {}
    before = {signal.SIGHUP: signal.SIG_IGN, signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    monkeypatch.setattr(signal, "getsignal", before.get)
    monkeypatch.setattr(signal, "signal", installed.__setitem__)
    interrupts.install()
    assert installed == dict.fromkeys((signal.SIGINT, signal.SIGTERM), interrupts._interrupt)


def test_a_stage_that_fails_prints_nothing(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match="x"), stage("load"):
        raise ValueError("x")
    assert capsys.readouterr().out == ""


def test_tables_and_sizes():
    assert table([("a", "long"), ("wide cell", "b")]) == "a          long\nwide cell  b"
    assert [readable(size) for size in (612, 90_352_600, 999_960_000, 1_500_000_000)] == [
        *("0.6 kB", "90.4 MB", "1.00 GB", "1.50 GB")
    ]


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_output_that_is_closed_is_no_error(closed: str):
    """A file of the bundle would get its number, and what is printed."""
    script = """
import os, runpy, sys
from export.command import list_tasks
from export.command.progress import stage
def tasks():
    with stage("load"):
        assert os.open(os.devnull, os.O_RDONLY) > 2
    return []
list_tasks.tasks = tasks
sys.argv = ["export", "--json", "--list-tasks"]
runpy.run_module("export", run_name="__main__")
"""
    command = f'exec "$0" -c "$1" {closed}'
    done = subprocess.run(["bash", "-c", command, sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch("" if "2>" in closed else r"load +\d\.\d s\n", done.stderr)


API_PROXY = ("--task", "api-proxy", "--out")
"""The quickest export: that of a task without a model."""


def in_shell(redirection: str, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = shlex.join([sys.executable, "-m", "export", *argv])
    env = {**os.environ, **environ}
    return subprocess.run(
        ["bash", "-c", f"{command} {redirection}"], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_full_stdout_is_not_taken_for_the_disk_of_the_bundle(tmp_path: Path):
    done = in_shell("> /dev/full", *API_PROXY, str(tmp_path / "b"))
    said = "error: the output cannot be written (No space left on device); send it elsewhere, or make room there\n"
    assert (done.returncode, done.stderr) == (3, said)
    assert list(tmp_path.iterdir()) == []


def test_output_that_fails_behind_the_rename_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    warning = "warning: the output cannot be written (No space left on device)\n"
    done = in_shell("> /dev/full", *API_PROXY, str(tmp_path / "a"), "--json")
    assert (done.returncode, done.stderr.endswith(warning)) == (0, True)
    done = in_shell("> /dev/full", "keygen", "--key", str(tmp_path / "key"), PYTHONUNBUFFERED="1")
    assert (done.returncode, done.stderr) == (0, warning)
    done = in_shell("2> /dev/full", *API_PROXY, str(tmp_path / "b"), "--json")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (0, "written")
    done = in_shell("2> /dev/full", *API_PROXY, str(tmp_path / "b"))  # which is there now
    assert (done.returncode, done.stdout) == (2, "")

    class Gone(io.FileIO):
        """A pipe whose reader ends as soon as the bundle is there."""

        def write(self, data: Any) -> int:
            if (tmp_path / "c").exists() and not self.ended:
                self.ended = True
                raise BrokenPipeError(errno.EPIPE, "Broken pipe")
            return super().write(data)

        ended = False

    raw = Gone(os.devnull, "w")
    with io.TextIOWrapper(io.BufferedWriter(raw)) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main([*API_PROXY, str(tmp_path / "c")]) == 0
    assert raw.ended
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c", "key"}


def test_names_that_an_encoding_does_not_have(tmp_path: Path):
    ascii_alone = {"PYTHONIOENCODING": "ascii"}
    done = in_shell("", *API_PROXY, str(tmp_path / "é"), **ascii_alone)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"bundle    {tmp_path}/\\xe9 " in done.stdout
    done = in_shell("", *API_PROXY, str(tmp_path / "ö"), "--json", **ascii_alone)
    assert (done.returncode, json.loads(done.stdout)["bundle"]) == (0, str(tmp_path / "ö"))


WITH_LATE_SIGNALS = """
import atexit, os, runpy, signal
rename = os.rename
def renamed(*paths):
    rename(*paths)
    os.kill(os.getpid(), signal.SIGTERM)
os.rename = renamed
atexit.register(os.kill, os.getpid(), signal.SIGINT)
runpy.run_module("export", run_name="__main__", alter_sys=True)
"""


def test_signals_behind_the_rename_come_too_late(tmp_path: Path):
    command = [sys.executable, "-c", WITH_LATE_SIGNALS, *API_PROXY, str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"bundle    {tmp_path}/b " in done.stdout
    assert (tmp_path / "b/manifest.json").is_file()


def test_whoever_reads_what_json_leaves_to_stderr_may_end():
    """As with `--json 2>&1 >out.json | head`: then all but the object has nobody to read it."""
    script = """
import runpy, sys
from export.command import list_tasks
def tasks():
    print("x" * 100_000, flush=True)
    return []
list_tasks.tasks = tasks
sys.argv = ["export", "--json", "--list-tasks"]
runpy.run_module("export", run_name="__main__")
"""
    command = 'exec 3>&1; { "$0" -c "$1" 2>&1 >&3; echo $? >&3; } | true'
    done = subprocess.run(["bash", "-c", command, sys.executable, script], capture_output=True, text=True, timeout=60)
    answer, _, code = done.stdout.rstrip().rpartition("\n")
    assert (json.loads(answer)["status"], int(code)) == ("interrupted", 130), done.stdout
