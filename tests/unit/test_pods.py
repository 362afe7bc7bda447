"""Pods end, whatever happens to whoever rented them; and how RunPod's API replies, and to which key."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.__main__ import main as command
from export.command import interrupts
from export.command.interrupts import SIGNALS
from export.errors import Refused
from export.pods.api import Api
from export.pods.pod import Pod, load_api, rented
from export.pods.server import Build, end_pod
from tests.runpod_api import KEY, EmulatedApi

GONE = {"title": "Gone", "status": 410, "detail": "this API was retired"}
BUSY = {"title": "Too Many Requests", "status": 429, "detail": "rate limit exceeded for the minute window"}


@pytest.mark.parametrize(
    ("reply", "code", "sentence"),
    [
        ((410, GONE), 3, "RunPod's API answered 410 (this API was retired); try again later, or with a newer version"),
        ((429, BUSY), 3, "RunPod's API answered 429 (rate limit exceeded for the minute window); try again later"),
        ((410, b"Gone"), 3, "RunPod's API answered 410 (Gone); try again later"),
        ((503, b"<html>"), 3, "RunPod's API answered 503 (Service Unavailable); try again later"),
        ((200, b"<html>"), 3, "RunPod's API answered 200 (OK); try again later"),
        (
            (402, {"detail": "Insufficient balance."}),
            2,
            "RunPod refused (402): Insufficient balance.; check RUNPOD_API_KEY",
        ),
    ],
)
def test_replies_of_another_kind_are_sentences(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, reply: tuple[int, Any], code: int, sentence: str
):
    with EmulatedApi() as api:
        api.refuse_with = reply
        monkeypatch.setenv("RUNPOD_API_BASE_URL", api.url)
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        argv = ["plan", str(small_bundle), "--on-runpod", "NVIDIA L4", "--image", "x"]
        assert command(argv) == code
        assert Pod("pod1", "token", Api(KEY)).is_alive(), "which is no sign of death"
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


LIMITS: Any = {"cloud": "SECURE", "disk_gb": 1, "time_limit_s": 1}
ORDER = {"name": "plan-1", "args": "python -c pass", "env": {}}


@pytest.mark.parametrize("reply", [(410, GONE), (429, BUSY), (503, b"<html>"), (403, {"detail": "access denied"})])
def test_a_pod_asks_for_its_end_until_it_is_gone(monkeypatch: pytest.MonkeyPatch, capsys: Any, reply: Any):
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            api.refuse_with, api.fail_terminations = None, 2

    with EmulatedApi() as api:
        api.answer("POST", "/v2/pods", ORDER)
        api.refuse_with = reply
        monkeypatch.setattr("export.pods.server.time", SimpleNamespace(sleep=sleep))
        end_pod({"RUNPOD_API_KEY": KEY, "RUNPOD_POD_ID": "pod1", "RUNPOD_API_BASE_URL": api.url})
        assert api.pods == {}
    said = capsys.readouterr().out.splitlines()
    assert pauses == [1, 2, 5, 10, 30]
    assert len(said) == 5
    assert all(line.startswith("this pod could not end itself (") for line in said)
    assert "API answered 500 (please try again)" in said[-1]
    assert said[-1].endswith("; trying again in 30 s")


@pytest.mark.parametrize("was_interrupted", [True, False])
def test_no_signal_interrupts_the_end_of_a_pod(monkeypatch: pytest.MonkeyPatch, was_interrupted: bool):
    """Nor one that comes as it begins, before signals are held. A terminal that closes sends SIGHUP more than once."""

    class Interrupted(Api):
        def named(self, name: str) -> list[str]:
            for number in SIGNALS:
                signal.raise_signal(number)
            return super().named(name)

    getsignal, at_once = signal.getsignal, [signal.SIGINT]

    def interrupted(number: int) -> Any:
        while at_once:
            signal.raise_signal(at_once.pop())
        return getsignal(number)

    monkeypatch.setattr(interrupts, "_came", False)
    before = {number: signal.signal(number, interrupts._interrupt) for number in SIGNALS}
    try:
        with EmulatedApi(("true",)) as api:
            monkeypatch.setenv("RUNPOD_API_BASE_URL", api.url)
            with suppress(KeyboardInterrupt), rented(Interrupted(KEY), "NVIDIA L4", "image", **LIMITS):
                monkeypatch.setattr(signal, "getsignal", interrupted)
                if was_interrupted:
                    signal.raise_signal(signal.SIGINT)
            assert (len(api.created), api.pods) == (1, {})
        assert interrupts.came()  # it is answered once the pod is gone
        assert {getsignal(number) for number in SIGNALS} == {interrupts._interrupt}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rent(api: EmulatedApi, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("RUNPOD_API_BASE_URL", api.url)
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    return command(["plan", str(bundle), "--on-runpod", "NVIDIA L4", "--image", "x"])


def unanswered(bundle: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    """What a pod was created with that never answers, as when its image cannot be pulled; it is paid for 2 s."""
    with EmulatedApi(("sh", "-c", "exec sleep 60", "sh"), start_s=1e9) as api:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", api.url)
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        monkeypatch.setattr("export.pods.on_runpod._LEAST_S", 0)
        fixed = ["--on-runpod", "NVIDIA L4", "--image", "ghcr.io/org/worker:1", "--proxy", api.proxy]
        fixed += ["--pause", "0.1", "--cost-limit", str(2 * 0.44 / 3600)]
        assert command(["plan", str(bundle), *fixed, *options]) == 2
        assert api.pods == {}
    (created,) = api.created
    return created


def test_a_pod_that_never_answers_may_have_no_image(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert "registry" not in unanswered(small_bundle, monkeypatch)
    error = capsys.readouterr().err
    assert re.match(
        r"error: the pod did not answer in \d+ s and was ended; RunPod may not find ghcr\.io/org/worker:1,", error
    )
    assert "name a credential with --registry if it is private, or raise --time-limit or --cost-limit\n" in error


def test_a_private_image_is_pulled_with_the_credential_that_is_named(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    """The field is of RunPod's API v2, for pods as for templates and endpoints."""
    assert unanswered(small_bundle, monkeypatch, "--registry", "cr123")["registry"] == "cr123"


def test_a_pod_is_ended_whose_creation_was_on_its_way_when_ctrl_c_came(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Slow(EmulatedApi):
        """What is on its way gets there, whether somebody waits for the answer or not."""

        listed, made = threading.Event(), threading.Event()

        def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
            if method == "POST":
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                self.listed.wait(0.3)
            found = super().answer(method, path, body)
            if path == "/v2/pods":
                (self.made if method == "POST" else self.listed).set()
            return found

    monkeypatch.setattr(interrupts, "_came", False)
    with Slow(("true",)) as api:
        assert rent(api, small_bundle, monkeypatch) == 130
        assert api.made.wait(10)
        assert (len(api.created), api.pods) == (1, {})
    assert capsys.readouterr().err == "interrupted; nothing was written\n"


@pytest.mark.parametrize(("looks", "code"), [(3, 3), (99, 2)])
def test_a_pod_whose_creation_was_not_answered_is_waited_for(
    small_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    looks: int,
    code: int,
):
    pauses: list[float] = []
    monkeypatch.setattr("export.pods.pod.time", SimpleNamespace(sleep=pauses.append))
    with EmulatedApi(("true",)) as api:
        api.drop_creation_reply, api.hidden_for = True, looks
        assert rent(api, small_bundle, monkeypatch) == code
        (name,) = (pod["name"] for pod in api.created)
        assert bool(api.pods) is (code == 2)
    printed = capsys.readouterr()
    assert f"its creation was not answered; waiting a minute for the pod {name} to appear\n" in printed.out
    if code == 3:
        assert printed.err == "error: RunPod's API cannot be reached (ConnectionError); try again\n"
        return
    assert printed.err == (
        f"error: the pod {name} may still run and cost money (its creation was not answered, and it did not appear); "
        "terminate it in RunPod's console\n"
    )
    assert sum(pauses) > 60


@pytest.mark.parametrize("was_seen", [True, False])
def test_a_pod_is_ended_by_its_id_before_it_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], was_seen: bool
):
    """Whether RunPod has shown it under its id by then or not."""
    monkeypatch.setattr("export.pods.pod.time", SimpleNamespace(sleep=lambda seconds: None))
    with EmulatedApi(("true",)) as api:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", api.url)
        api.hidden_for = 99
        with rented(Api(KEY), "NVIDIA L4", "image", **LIMITS) as pod:
            assert not was_seen or pod.is_alive()
        assert (len(api.created), api.pods) == (1, {})
    assert capsys.readouterr().out == ""


def test_a_pod_is_ended_by_its_id_where_pods_cannot_be_listed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("export.pods.pod.time", SimpleNamespace(sleep=lambda seconds: None))

    class Unlisted(EmulatedApi):
        def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
            return (500, BUSY) if (method, path) == ("GET", "/v2/pods") else super().answer(method, path, body)

    with Unlisted(("true",)) as api:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", api.url)
        with (
            pytest.raises(Refused, match="API answered 500 .* terminate it in RunPod's console"),
            rented(Api(KEY), "NVIDIA L4", "image", **LIMITS),
        ):
            assert len(api.pods) == 1
        assert api.pods == {}


def test_a_pod_that_was_ended_elsewhere_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    """As in RunPod's console, or by itself."""
    pauses: list[float] = []
    monkeypatch.setattr("export.pods.pod.time", SimpleNamespace(sleep=pauses.append))
    with EmulatedApi(("true",)) as api:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", api.url)
        with rented(Api(KEY), "NVIDIA L4", "image", **LIMITS) as pod:
            assert pod.is_alive()
            api.answer("DELETE", f"/v2/pods/{pod.id}", None)
            assert not pod.is_alive()
    assert pauses == []


def test_a_pod_is_alive_until_it_is_known(monkeypatch: pytest.MonkeyPatch):
    with EmulatedApi(("true",)) as api:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", api.url)
        api.unknown_for = 2
        with rented(Api(KEY), "NVIDIA L4", "image", **LIMITS) as pod:
            assert [pod.is_alive() for _ in range(3)] == [True] * 3
            api.unknown_for = 1
            assert not pod.is_alive()


def test_a_pod_that_nothing_shows_any_more_may_still_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Neither its end nor that it was there is known."""
    pauses: list[float] = []
    monkeypatch.setattr("export.pods.pod.time", SimpleNamespace(sleep=pauses.append))
    with EmulatedApi(("true",)) as api:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", api.url)
        sentence = r"may still run and cost money \(RunPod does not show it, and it did not appear\); terminate it in"
        with pytest.raises(Refused, match=sentence), rented(Api(KEY), "NVIDIA L4", "image", **LIMITS) as pod:
            api.answer("DELETE", f"/v2/pods/{pod.id}", None)
    assert sum(pauses) > 60
    assert "RunPod does not show it; waiting a minute for the pod plan-" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["\N{LEFT DOUBLE QUOTATION MARK}rpa_1\N{RIGHT DOUBLE QUOTATION MARK}", "rpa_1\nrpa_2"])
def test_what_is_no_key_is_not_sent(monkeypatch: pytest.MonkeyPatch, key: str):
    monkeypatch.setenv("RUNPOD_API_KEY", key)
    with pytest.raises(Refused, match="RUNPOD_API_KEY holds what no key does, such as quotes of a text; copy it from"):
        load_api()


def test_a_key_is_taken_out_of_the_blanks_around_it(monkeypatch: pytest.MonkeyPatch):
    """As it comes out of a file."""
    with EmulatedApi() as api:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", api.url)
        monkeypatch.setenv("RUNPOD_API_KEY", f" {KEY}\n")
        assert load_api().hourly_price("NVIDIA L4", "SECURE") == 0.44


@pytest.mark.parametrize(
    ("command", "said", "exit_code"),
    [
        ((sys.executable, "-c", "import os; os.write(1, b'caf\\xe9\\n')"), "caf\\xe9", 0),
        (("/nowhere/python",), "the build did not start: [Errno 2] No such file or directory: '/nowhere/python'", 3),
        ((), "the build did not start: [Errno 2] No such file or directory: '/nowhere/bundle'", 3),
    ],
)
def test_a_build_ends_whatever_it_says_and_whether_it_starts_or_not(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any, said: str, exit_code: int
):
    """Else the pod is paid until its time limit."""
    monkeypatch.setattr("export.pods.server.COMMAND", command)
    (tmp_path / "folder").mkdir()
    build = Build(tmp_path / "folder", small_bundle if command else Path("/nowhere/bundle"))
    build.start([])
    while (state := build.state())["exit_code"] is None:
        time.sleep(0.01)
    assert (state["lines"], state["count"], state["exit_code"]) == ([said], 1, exit_code)
