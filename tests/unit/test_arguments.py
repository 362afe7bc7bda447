"""The worker's command line, and variables that are nearly settings."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from engine.config import Settings
from engine.errors import ConfigError
from handler.arguments import check
from handler.startup.misspelt import misspelt


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--tst_input", "{}"], "unrecognized arguments: --tst_input {}; see python -m handler --help"),
        (["--test_input"], "argument --test_input: expected one argument; see python -m handler --help"),
        (["--test_input", "{'input': 1}"], "--test_input is not JSON (Expecting property name"),
        (["--test_input", '{"text": "a"}'], "--test_input is not a job, an object with `input`; write --test_input"),
        (["--rp_serve_api", "--rp_api_port", "70000"], "argument --rp_api_port: '70000' is not a port from 1 to 65535"),
        (["--rp_log_level", "FOO"], "--rp_log_level: 'FOO' is not one of ERROR, WARN, INFO, DEBUG, TRACE, NOTSET; see"),
        (["--rp_api_concurrency", "2"], "--rp_api_concurrency: '2' is not 1: the SDK's server runs a worker in one"),
        (
            ["--rp_debugger"],
            "--rp_debugger: the SDK's debugger loses jobs whose answer is a list or an error; leave it",
        ),
        ([], "there is no test_input.json in"),
    ],
)
def test_what_the_sdk_would_ignore_or_stumble_over_is_refused(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        check(argv, on_runpod=False)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_working_directory_that_was_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="there is no test_input.json in the working directory, which was removed: "):
        check([], on_runpod=False)


def test_the_file_beside_it_is_looked_at_where_it_is_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("test_input.json").write_text("{")
    with pytest.raises(ConfigError, match=r"test_input\.json is not JSON .*; correct it, or give --test_input"):
        check([], on_runpod=False)
    for content in (b"[" * 100_000, '{"input": "käse"}'.encode("latin-1")):
        Path("test_input.json").write_bytes(content)
        with pytest.raises(ConfigError, match=r"test_input\.json (is not JSON|cannot be read)"):
            check([], on_runpod=False)
    check(["--rp_serve_api"], on_runpod=False)
    check(["--rp_log_level", "debug"], on_runpod=True)
    Path("test_input.json").write_text('{"input": {}}')
    check([], on_runpod=False)


def test_the_sdk_takes_whatever_is_let_through(capsys: pytest.CaptureFixture[str]):
    from runpod.serverless import parser

    with pytest.raises(SystemExit):
        check(["--help"], on_runpod=False)
    told = capsys.readouterr().out
    theirs = {name for action in parser._actions for name in action.option_strings}
    assert theirs == {word for word in theirs if word in told}
    assert "BUNDLE" in told
    assert "Exit codes: 0" in told


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MAX_ITEM", "MAX_ITEMS"),  # left out
        ("ENGINES", "ENGINE"),  # too much
        ("BUNDLE_SHA265", "BUNDLE_SHA256"),  # swapped
        ("MAX_QUEUE_DELAY_MZ", "MAX_QUEUE_DELAY_MS"),  # wrong
        ("max_batch_rows", "MAX_BATCH_ROWS"),
        ("MODEL_NAME", "BUNDLE"),  # of RunPod's own workers
        ("BACKEND", "ENGINE"),  # of its infinity worker, as the rest
        ("BATCH_SIZES", "MAX_BATCH_ROWS"),
        ("DTYPES", "PRECISION"),
        ("INFINITY_QUEUE_SIZE", "MAX_QUEUED_ROWS"),
        ("RUNPOD_MAX_CONCURRENCY", "MAX_CONCURRENCY"),
    ],
)
def test_a_variable_that_is_nearly_a_setting_is_named(name: str, meant: str):
    assert misspelt({name: "1", "PATH": "/bin", "HOME": "/root", "http_proxy": "x"}) == [(name, meant)]


def test_a_variable_that_is_two_letters_away_is_something_else():
    assert misspelt({"MAX_ITE": "1", "DEBUG": "1", "UV_TORCH_BACKEND": "cpu"}) == []


def test_no_setting_is_taken_for_a_misspelt_one():
    assert misspelt({item.metadata["env"]: "1" for item in fields(Settings)}) == []
