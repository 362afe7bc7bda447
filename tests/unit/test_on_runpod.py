"""What of `export plan --on-runpod` needs no pod: which GPUs may be named, what one may change, how the API replies."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from engine.bundle import CHECKSUM, MANIFEST, Bundle, open_bundle, write_manifest
from engine.errors import BundleError
from export.__main__ import main as command
from export.command import interrupts
from export.command.interrupts import SIGNALS
from export.errors import ParityFailed, Refused, Unavailable
from export.pods.api import Api
from export.pods.changes import manifest_of, new_files
from export.pods.client import PodClient
from export.pods.gpus import BLACKWELL, architecture_of
from export.pods.on_runpod import main, order_from_argv
from export.pods.pod import Pod, load_api, rented
from export.pods.server import Build, end_pod, server
from tests.runpod_api import KEY, EmulatedApi

PLANS = "graphs/model/plans"
L4, A40 = f"{PLANS}/sm_89-trt10.13.0-fp16", f"{PLANS}/sm_86-trt10.13.0-fp16"
WORKFLOW = Path(__file__).parents[2] / ".github/workflows/image.yml"


def order(gpu_types: str) -> tuple[str, ...]:
    return order_from_argv(["bundle", "--on-runpod", gpu_types, "--image", "x"]).gpu_types


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("sm_75", ("Tesla T4", "Quadro RTX 4000", "NVIDIA GeForce RTX 2080 Ti")),
        ("sm_80", ("NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB", "NVIDIA A30")),
        ("sm_86", ("NVIDIA A40", "NVIDIA A10", "NVIDIA RTX A2000", "NVIDIA RTX A6000", "NVIDIA GeForce RTX 3090 Ti")),
        ("sm_89", ("NVIDIA L4", "NVIDIA L40", "NVIDIA L40S", "NVIDIA GeForce RTX 4080 SUPER")),
        ("sm_89", ("NVIDIA RTX 2000 Ada Generation", "NVIDIA RTX 5000 Ada Generation")),
        ("sm_90", ("NVIDIA H100 80GB HBM3", "NVIDIA H100 NVL", "NVIDIA H200")),
        (BLACKWELL, ("NVIDIA B200", "NVIDIA GeForce RTX 5090", "NVIDIA RTX PRO 6000 Blackwell Server Edition")),
        ("", ("NVIDIA K80", "AMD Instinct MI300X OAM")),
    ],
)
def test_the_architecture_of_a_name(architecture: str, names: tuple[str, ...]):
    assert {architecture_of(name) for name in names} == {architecture}


def test_one_gpu_of_an_architecture():
    with pytest.raises(Refused, match="NVIDIA L4 and NVIDIA GeForce RTX 4090 are both sm_89, for which a bundle holds"):
        order("NVIDIA L4,NVIDIA A40,NVIDIA GeForce RTX 4090")
    assert order("NVIDIA L4,NVIDIA L4,NVIDIA A40,of tomorrow,of the day after") == (
        *("NVIDIA L4", "NVIDIA A40", "of tomorrow", "of the day after"),
    )
    assert order("NVIDIA RTX 5000 Ada Generation") == ("NVIDIA RTX 5000 Ada Generation",)  # no RTX 50


def test_what_the_workflow_asks_for_is_taken():
    inputs = yaml.safe_load(WORKFLOW.read_text())[True]["workflow_dispatch"]["inputs"]  # `on`, in YAML 1.1
    assert len(order(inputs["gpu_types"]["default"])) == 2


def of(bundle: Bundle, **files: str) -> Bundle:
    """`bundle` with these files: a name of PLANS' or another -> what stands for its hash."""
    known = {"l4": f"{L4}.plan", "l4_json": f"{L4}.json", "a40": f"{A40}.plan", "a40_json": f"{A40}.json"}
    listed = {**bundle.manifest.files, **{known.get(key, key): (1, one) for key, one in files.items()}}
    return replace(bundle, manifest=replace(bundle.manifest, files=listed))


CACHE = f"{PLANS}/timing.cache"


def test_a_pod_may_build_its_own_plans_anew(small_bundle: Path):
    bundle = open_bundle(small_bundle)
    old = of(bundle, l4="1", l4_json="1", **{CACHE: "1", "parity.json": "1"})
    new = of(bundle, l4="2", l4_json="2", **{CACHE: "2", "parity.json": "2"})
    assert set(new_files(old, new)) == {f"{L4}.plan", f"{L4}.json", CACHE, "parity.json"}
    assert set(new_files(old, of(old, a40="1", a40_json="1", **{CACHE: "2"}))) == {f"{A40}.plan", f"{A40}.json", CACHE}
    assert new_files(old, of(old, l4_json="2")) == [f"{L4}.json"]  # the same plan, measured again


def test_a_pod_leaves_plans_of_other_architectures_as_they_are(small_bundle: Path):
    both = of(open_bundle(small_bundle), l4="1", l4_json="1", a40="1", a40_json="1")
    with pytest.raises(BundleError, match=rf"the pod changed {L4}\.plan, {A40}\.plan; the bundle here stays as it was"):
        new_files(both, of(both, l4="2", a40="2"))
    one = of(open_bundle(small_bundle), l4="1", l4_json="1")
    with pytest.raises(BundleError, match=rf"the pod changed {L4}\.json; the bundle"):
        new_files(one, of(one, l4_json="2", a40="1", a40_json="1"))
    with pytest.raises(BundleError, match=rf"the pod changed {L4}\.plan, {L4}\.json; the bundle"):
        new_files(one, of(open_bundle(small_bundle), a40="1"))  # they are gone


def test_what_a_pod_sends_is_judged(small_bundle: Path):
    old = open_bundle(small_bundle)
    with pytest.raises(BundleError, match="the pod sent no plan; the bundle here stays as it was"):
        new_files(old, old)
    with pytest.raises(BundleError, match="the pod sent no plan; the bundle here stays as it was"):
        new_files(old, of(old, **{CACHE: "1"}))
    with pytest.raises(BundleError, match=r"the pod changed graphs/model/fp32\.onnx; the bundle"):
        new_files(old, of(old, l4="1", **{"graphs/model/fp32.onnx": "2"}))
    for name in ("tokenizer_config.json", "graphs/model/int8.onnx", "graphs/other/fp16.onnx", "manifest.sig"):
        with pytest.raises(BundleError, match=rf"the pod added {re.escape(name)}, which no plan needs; the bundle"):
            new_files(old, of(old, l4="1", **{name: "1"}))


def test_for_a_bundle_of_a_newer_version_no_pod_is_rented(small_bundle: Path):
    manifest = json.loads((small_bundle / MANIFEST).read_bytes())
    raw = json.dumps({**manifest, "schema_version": "1.99"}).encode()
    (small_bundle / MANIFEST).write_bytes(raw)
    (small_bundle / CHECKSUM).write_text(f"{hashlib.sha256(raw).hexdigest()}  {MANIFEST}\n")
    with pytest.raises(BundleError, match="was made by a newer version"):
        main([str(small_bundle), "--on-runpod", "NVIDIA L4", "--image", "x"])


def with_graph(bundle: Bundle, **changes: Any) -> Bundle:
    graphs = {"model": replace(bundle.manifest.graphs["model"], **changes)}
    return replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))


HALF = {f"graphs/model/fp16.{kind}": "1" for kind in ("onnx", "bin")}
ONNX = {"fp32": "graphs/model/fp32.onnx", "fp16": "graphs/model/fp16.onnx"}


def test_a_pod_may_make_the_graph_that_its_plan_is_built_from(small_bundle: Path):
    old = open_bundle(small_bundle)
    new = with_graph(of(old, l4="1", l4_json="1", **HALF), onnx=ONNX)
    assert set(new_files(old, new)) == {f"{L4}.plan", f"{L4}.json", *HALF}
    assert manifest_of(old, new).graphs["model"].onnx == ONNX
    for name in HALF:  # but not where there is one
        with pytest.raises(BundleError, match=rf"the pod added {re.escape(name)}, which no plan needs"):
            new_files(with_graph(old, onnx=ONNX), with_graph(of(old, l4="1", **{name: "1"}), onnx=ONNX))


@pytest.mark.parametrize(
    "onnx", [{"fp32": "graphs/model/fp16.onnx"}, {**ONNX, "bf16": "graphs/model/fp32.onnx"}, {"fp32": ONNX["fp32"]}]
)
def test_a_pod_points_no_graph_to_other_files(small_bundle: Path, onnx: dict[str, str]):
    old = open_bundle(small_bundle)
    new = with_graph(of(old, l4="1", **HALF), onnx=onnx)
    with pytest.raises(BundleError, match=r"the pod changed graphs in manifest\.json; the bundle here stays as it was"):
        manifest_of(old, new)


def test_a_pod_says_nothing_else_of_the_bundle(small_bundle: Path):
    """As an image of an earlier version does, which leaves out what it does not know, or one that means harm."""
    old = open_bundle(small_bundle)
    old = replace(old, manifest=replace(old.manifest, exporter="dynamo", parity_failed="cosine 0.5"))
    theirs = of(old, l4="1").manifest
    assert manifest_of(old, replace(old, manifest=theirs)) == old.manifest
    cases: list[tuple[dict[str, Any], str]] = [
        ({"exporter": "", "parity_failed": ""}, "parity_failed, exporter"),
        ({"task_config": {**theirs.task_config, "default_prompt": "theirs"}}, "task_config"),
        ({"model": "other", "precisions": {"cuda": "fp16"}}, "model, precisions"),
    ]
    for changes, named in cases:
        sentence = rf"the pod changed {named} in manifest\.json; .* stays as it was; build --image from this version$"
        with pytest.raises(BundleError, match=sentence):
            manifest_of(old, replace(old, manifest=replace(theirs, **changes)))


def test_a_graph_that_is_there_is_not_asked_for_in_another_form(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    monkeypatch.setattr("runpod.api_key", None)
    argv = [str(small_bundle), "--on-runpod", "NVIDIA L4", "--image", "x", "--form"]
    with pytest.raises(Refused, match="no RunPod API key"):
        main([*argv, "sums"])
    shutil.copyfile(small_bundle / ONNX["fp32"], small_bundle / ONNX["fp16"])
    write_manifest(small_bundle, with_graph(open_bundle(small_bundle), onnx=ONNX).manifest)
    for form, precision in (("sums", []), ("half", ["--precision", "fp16"])):
        with pytest.raises(
            Refused, match=r"--form \w+ makes graphs/model/fp16.onnx anew, and a pod may change no graph"
        ):
            main([*argv, form, *precision])
    for form, precision in (("hints", []), ("sums", ["--precision", "bf16"])):
        with pytest.raises(Refused, match="no RunPod API key"):
            main([*argv, form, *precision])


@pytest.mark.parametrize(
    ("code", "kind", "exit_code"),
    [
        ("1", ParityFailed, 1),
        ("2", Refused, 2),
        ("3", Unavailable, 3),
        ("4", Refused, 4),
        ("130", Unavailable, 3),
        ("os.kill(os.getpid(), 9)", Unavailable, 3),
    ],
)
def test_what_a_build_on_a_pod_ends_with_is_passed_on(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind: Any, exit_code: int
):
    command = (sys.executable, "-ISc", f"import os, sys; sys.exit({code})")
    monkeypatch.setattr("export.pods.server.COMMAND", command)
    with serving(server(Build(small_bundle, small_bundle), "token", 0)) as url:
        client = PodClient(url, "token", time.monotonic() + 60, lambda: True, 0.02)
        sentence = (
            "the build on the pod was killed .signal 9., as where" if "kill" in code else "its lines above say why"
        )
        with pytest.raises(kind, match=sentence) as failure:
            client.build([], print)
    assert failure.value.exit_code == exit_code


@contextmanager
def serving(running: ThreadingHTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


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

    limits: Any = {"cloud": "SECURE", "disk_gb": 1, "time_limit_s": 1}
    monkeypatch.setattr(interrupts, "_came", False)
    before = {number: signal.signal(number, interrupts._interrupt) for number in SIGNALS}
    try:
        with EmulatedApi(("true",)) as api:
            monkeypatch.setenv("RUNPOD_API_BASE_URL", api.url)
            with suppress(KeyboardInterrupt), rented(Interrupted(KEY), "NVIDIA L4", "image", **limits):
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
