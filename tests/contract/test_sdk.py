"""What this worker relies on inside the RunPod SDK. Red here after an upgrade: read handler/protocol/sdk.py again."""

import importlib.metadata
import importlib.util
import inspect
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

from engine.errors import ConfigError
from handler import front
from handler.log import LOG_LEVELS
from handler.protocol import sdk, sdk_environ
from handler.protocol.heartbeat import Heartbeat

SDK_ENV = {
    **os.environ,
    "RUNPOD_LOG_LEVEL": "INFO",
    "RUNPOD_POD_ID": "w",
    "RUNPOD_WEBHOOK_GET_JOB": "http://h/v2/e/job-take/$ID?gpu=x",
    "RUNPOD_WEBHOOK_POST_OUTPUT": "http://h/v2/e/job-done/$RUNPOD_POD_ID/$ID?gpu=x",
    "RUNPOD_WEBHOOK_POST_STREAM": "http://h/v2/e/job-stream/$RUNPOD_POD_ID/$ID?gpu=x",
}


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=SDK_ENV, check=True)


def test_the_installed_sdk_is_the_tested_one():
    assert importlib.metadata.version("runpod") == sdk.TESTED_VERSION


def test_the_functions_have_the_signatures_that_are_called():
    loaded = sdk.load()
    assert list(inspect.signature(loaded.get_job).parameters) == ["session", "num_jobs"]
    assert list(inspect.signature(loaded.get_stop_signals).parameters) == ["session"]
    assert inspect.iscoroutinefunction(loaded.get_job)
    assert issubclass(loaded.too_many_requests, Exception)
    assert "Authorization" in loaded.auth_header()
    assert loaded.progress.get_job_list() is None
    assert callable(loaded.progress.set_mirror)
    from runpod.serverless.modules.rp_ping import Heartbeat as Pings

    assert list(inspect.signature(Pings.ping_loop).parameters) == ["self", "test"]
    assert "self._send_ping()" in inspect.getsource(Pings.ping_loop)
    assert "_mirror.get()" in inspect.getsource(Pings._send_ping)


def test_a_setting_of_the_sdk_is_not_lost_when_its_init_runs_later():
    """A fork's task may call another endpoint."""
    found = python(
        "from handler.protocol import sdk; sdk.load(); import runpod\n"
        "runpod.api_key = 'mine'; runpod.endpoint_url_base = 'http://here'\n"
        "print(runpod.Endpoint('e').rp_client.api_key, runpod.endpoint_url_base)"
    ).stdout.split()
    assert found == ["mine", "http://here"]


def test_addresses_come_from_the_environment():
    found = python(
        "from handler.protocol import sdk; s = sdk.load(); print(s.job_done_url, s.job_stream_url)\n"
        "from runpod.serverless.modules import rp_job; print(rp_job._job_get_url(3), rp_job._job_stop_url())"
    ).stdout.split()
    assert found == [
        "http://h/v2/e/job-done/w/$ID?gpu=x",
        "http://h/v2/e/job-stream/w/$ID?gpu=x",
        "http://h/v2/e/job-take-batch/w?gpu=x&batch_size=3&job_in_progress=0",
        "http://h/v2/e/job-stop/w?gpu=x",
    ]


def test_the_import_neither_sleeps_nor_loads_what_a_worker_does_not_need():
    code = (
        "import time, sys\n"
        "def refuse(seconds): raise SystemExit('slept')\n"
        "time.sleep = refuse\n"
        "from handler.protocol import sdk\n"
        "sdk.load()\n"
        "assert sys.modules['cpuinfo'].__spec__ is None, 'it measures the clock in a process of its own'\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = set(python(code).stdout.split())
    assert {"asyncio", "httptools"} <= loaded
    assert not loaded & {
        "aiohttp",
        "aiohttp_retry",
        "paramiko",
        "boto3",
        "fastapi",
        "requests",
        "urllib3",
        "aiodns",
        "torch",
        "transformers",
        "onnx",
        "prettytable",
        "watchdog",
    }


def test_the_whole_sdk_is_still_there_for_a_fork_that_asks():
    code = (
        "from handler.protocol import sdk\n"
        "sdk.load()\n"
        "import runpod\n"
        "from runpod.serverless import progress_update\n"
        "print(runpod.Endpoint.__name__, runpod.serverless.start.__name__, progress_update.__name__)\n"
        "print(runpod.__version__)\n"
        "print(runpod.serverless.utils.upload_file_to_bucket.__name__, hasattr(runpod, 'no_such_name'))\n"
        "from runpod.http_client import SyncClientSession\n"
        "import aiohttp, aiodns, requests, tomlkit\n"
        "print(issubclass(SyncClientSession, requests.Session), tomlkit.dumps({'a': 1}).strip() == 'a = 1')"
    )
    assert python(code).stdout.split() == [
        "Endpoint",
        "start",
        "progress_update",
        sdk.TESTED_VERSION,
        "upload_file_to_bucket",
        "False",
        "True",
        "True",
    ]


def test_what_the_sdk_would_have_of_a_library_that_is_not_loaded_is_there_when_it_is_called():
    code = (
        "import asyncio, sys\n"
        "from handler.protocol import sdk\n"
        "sdk.load()\n"
        "client = sys.modules['runpod.http_client']\n"
        "assert 'aiohttp' not in sys.modules\n"
        "async def make():\n"
        "    async with client.AsyncClientSession() as session:\n"
        "        return type(session)\n"
        "made = asyncio.run(make())\n"
        "import aiohttp\n"
        "print(made is aiohttp.ClientSession)"
    )
    assert python(code).stdout.split() == ["True"]


def test_the_exception_is_the_one_that_is_raised_whenever_the_sdk_is_asked_for():
    """What the heartbeat takes of http_client runs that module again, with another class of the same name."""
    code = (
        "from handler.protocol import sdk\n"
        "sdk.load(), sdk.heartbeat()\n"
        "from runpod.serverless.modules import rp_job\n"
        "print(sdk.load().too_many_requests is rp_job.TooManyRequests)"
    )
    assert python(code).stdout.split() == ["True"]


def test_the_sdk_introduces_itself_as_it_does_without_us():
    """Its version is put in place, for it would be read with the parser of e-mails."""
    plain = python("from runpod.user_agent import USER_AGENT; print(USER_AGENT)")
    ours = python(
        "import sys\n"
        "from handler.protocol import sdk\n"
        "agent = sdk.load().auth_header()['User-Agent']\n"
        "from handler import front\n"
        "assert 'importlib.metadata' not in sys.modules\n"
        "print(agent)"
    )
    assert ours.stdout == plain.stdout
    assert sdk.TESTED_VERSION in ours.stdout


def test_the_heartbeat_loads_no_second_http_client():
    code = (
        "import sys\n"
        "from handler.protocol import sdk\n"
        "sdk.load()\n"
        "session = sdk.heartbeat()()._session\n"
        "import requests\n"
        "print('aiohttp' in sys.modules, isinstance(session, requests.Session))\n"
        "retries = session.get_adapter('https://api.example').max_retries\n"
        "print(retries.respect_retry_after_header, 429 in retries.status_forcelist)"
    )
    assert python(code).stdout.split() == ["False", "True", "False", "True"]


def test_an_sdk_that_moved_its_parts_is_named(monkeypatch: pytest.MonkeyPatch):
    sdk.load()
    monkeypatch.delattr(sys.modules["runpod.serverless.modules.rp_job"], "get_stop_signals")
    with pytest.raises(ConfigError, match=r"not the one that was tested .*get_stop_signals.*WORKER_LOOP=sdk"):
        sdk.load()


def test_a_report_that_fails_is_told_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sdk.load()
    client = importlib.import_module("runpod.http_client")
    before = client.SyncClientSession
    monkeypatch.setitem(sys.modules, "runpod.serverless.modules.rp_fitness", ModuleType("rp_fitness"))
    sdk.report_unhealthy("engine", "it died")
    assert "WARN  | reporting the worker as unhealthy failed: AttributeError: " in capsys.readouterr().out
    assert client.SyncClientSession is before


def test_a_report_whose_reply_never_ends_holds_nobody_up(monkeypatch: pytest.MonkeyPatch):
    done = threading.Event()

    def drip() -> None:
        with listener.accept()[0] as connection, suppress(OSError):
            while not done.wait(0.05):
                connection.send(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        dripping = threading.Thread(target=drip)
        dripping.start()
        monkeypatch.setenv("RUNPOD_WEBHOOK_PING", f"http://127.0.0.1:{listener.getsockname()[1]}/ping")
        monkeypatch.setenv("RUNPOD_AI_API_KEY", "a key")
        monkeypatch.setattr(front, "_REPORT_S", 0.5)
        front._report_unhealthy(Heartbeat({}), "it died")  # returns
        assert dripping.is_alive()
        done.set()
        dripping.join()


RUNPODS = {
    "RUNPOD_WEBHOOK_GET_JOB": "https://h/take?gpu=x",
    "RUNPOD_WEBHOOK_POST_OUTPUT": "http://h/done/$ID?gpu=x",
    "RUNPOD_AI_API_KEY": "a key",
}


@pytest.mark.parametrize("interval", ["1000", "10000", "9999999", None])
def test_an_interval_that_the_heartbeat_can_keep_is_left_as_it_is(
    capsys: pytest.CaptureFixture[str], interval: str | None
):
    environ = {} if interval is None else {"RUNPOD_PING_INTERVAL": interval}
    before = dict(environ)
    sdk_environ.settle(environ)
    assert (environ, capsys.readouterr().out) == ({**before, "RUNPOD_LOG_LEVEL": "INFO"}, "")


@pytest.mark.parametrize("interval", ["999", "10000000", "-5000", "4s", ""])
def test_an_interval_that_the_heartbeat_cannot_keep_is_replaced(capsys: pytest.CaptureFixture[str], interval: str):
    environ = {"RUNPOD_PING_INTERVAL": interval}
    sdk_environ.settle(environ)
    assert environ == {"RUNPOD_PING_INTERVAL": "10000", "RUNPOD_LOG_LEVEL": "INFO"}
    told = f"RUNPOD_PING_INTERVAL={interval!r} is not 1000 to 9999999 milliseconds; 10000 it is"
    assert told in capsys.readouterr().out


def test_the_levels_are_those_of_the_sdk():
    from runpod.serverless.modules import rp_logger

    assert set(LOG_LEVELS) == set(rp_logger.LOG_LEVELS)


LEVELS = [
    ({}, "INFO"),
    ({"RUNPOD_LOG_LEVEL": "", "RUNPOD_DEBUG_LEVEL": " "}, "INFO"),
    ({"RUNPOD_LOG_LEVEL": "NOTSET"}, "NOTSET"),
    ({"RUNPOD_LOG_LEVEL": "ERROR"}, "ERROR"),
    ({"RUNPOD_LOG_LEVEL": " warn"}, "WARN"),
    ({"RUNPOD_LOG_LEVEL": "warn "}, "WARN"),
    ({"RUNPOD_LOG_LEVEL": "INFO"}, "INFO"),
    ({"RUNPOD_DEBUG_LEVEL": "ERROR"}, "ERROR"),
    ({"RUNPOD_LOG_LEVEL": "", "RUNPOD_DEBUG_LEVEL": "debug"}, "DEBUG"),
    ({"RUNPOD_LOG_LEVEL": " ", "RUNPOD_DEBUG_LEVEL": "WARN"}, "WARN"),
    ({"RUNPOD_LOG_LEVEL": "ERROR", "RUNPOD_DEBUG_LEVEL": "INFO"}, "ERROR"),
    ({"RUNPOD_LOG_LEVEL": "TRACE", "RUNPOD_DEBUG_LEVEL": "LOUD"}, "TRACE"),
]
PRINTED = {"NOTSET": "", "ERROR": "ERROR", "WARN": "ERROR WARN"}  # of these three; else all


def test_the_level_that_the_sdk_reads_is_that_of_the_workers_own_lines():
    """One process, in which the SDK's logger is read anew for each environment."""
    code = f"""
import importlib, os
from handler.protocol import sdk, sdk_environ
from handler.protocol.heartbeat import Heartbeat
from handler.log import log
sdk.load()
from runpod.serverless.modules import rp_logger
plain = {{name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}}
for given, _ in {LEVELS}:
    os.environ.clear()
    os.environ.update(plain, **given)
    sdk_environ.settle(os.environ)
    logger = importlib.reload(rp_logger).RunPodLogger
    print("reads", logger.level)
    for level in ("ERROR", "WARN", "INFO"):
        log(level, f"ours {{level}}")
        logger().log(f"theirs {{level}}", level)
"""
    expected: list[list[str]] = []
    for _, read in LEVELS:
        levels = PRINTED.get(read, "ERROR WARN INFO").split()
        expected += [["reads", read], *([whose, level] for level in levels for whose in ("ours", "theirs"))]
    assert [line.split()[-2:] for line in python(code).stdout.splitlines()] == expected


@pytest.mark.parametrize("name", ["RUNPOD_LOG_LEVEL", "RUNPOD_DEBUG_LEVEL"])
@pytest.mark.parametrize("level", ["WARNING", "2"])
def test_a_level_that_the_sdk_has_not_is_refused(name: str, level: str):
    with pytest.raises(ConfigError) as refused:
        sdk_environ.settle({name: level})
    assert str(refused.value) == (
        f"{name}={level!r} is not allowed; set it to one of ERROR, WARN, INFO, DEBUG, TRACE, NOTSET, or leave it out "
        "for INFO"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RUNPOD_WEBHOOK_GET_JOB", None),
        ("RUNPOD_WEBHOOK_GET_JOB", "h/take?gpu=x"),
        ("RUNPOD_WEBHOOK_GET_JOB", "https://h/take"),
        ("RUNPOD_WEBHOOK_POST_OUTPUT", ""),
        ("RUNPOD_WEBHOOK_POST_OUTPUT", "http://h/done/$ID"),
        ("RUNPOD_WEBHOOK_POST_OUTPUT", "http://h/done?gpu=x"),
        ("RUNPOD_AI_API_KEY", "a\nb"),
        ("RUNPOD_AI_API_KEY", "clé"),
    ],
)
def test_a_variable_of_runpods_that_would_cost_jobs_is_named(name: str, value: str | None):
    environ = {key: kept for key, kept in {**RUNPODS, name: value}.items() if kept is not None}
    with pytest.raises(ConfigError, match=f"^{name}[ =]"):
        sdk_environ.check_addresses(environ)


def test_a_key_need_not_be_there():
    sdk_environ.check_addresses({name: value for name, value in RUNPODS.items() if name != "RUNPOD_AI_API_KEY"})


def test_libraries_that_are_loaded_are_the_sdks_as_well():
    import aiohttp
    import requests

    with sdk._without("aiohttp", "requests"):
        assert (sys.modules["aiohttp"], sys.modules["requests"]) == (aiohttp, requests)
    assert (sys.modules["aiohttp"], sys.modules["requests"]) == (aiohttp, requests)


@pytest.fixture
def nobody_imported_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "runpod"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("nobody_imported_it")
def test_an_sdk_of_another_layout_is_left_to_the_ordinary_import(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handler.startup.shells.enter", lambda name: False)
    sdk._enter_through_shells()
    assert not [name for name in sys.modules if name.partition(".")[0] == "runpod"]


@pytest.mark.usefixtures("nobody_imported_it")
def test_an_sdk_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="the RunPod SDK is not installed; install requirements/cpu.txt"):
        sdk.load()


def test_the_worker_imports_neither_torch_nor_the_exporters(small_bundle: Path):
    """What `python -X importtime -m handler` shows, for a worker that boots and answers one job."""
    command = [sys.executable, "-X", "importtime", "-m", "handler", "--test_input", '{"input": {"text": "a"}}']
    env = {**os.environ, "BUNDLE": str(small_bundle)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert {"onnxruntime", "tokenizers", "runpod"} <= loaded
    assert not loaded & {"torch", "transformers", "optimum", "onnx", "sentence_transformers", "cpuinfo"}
