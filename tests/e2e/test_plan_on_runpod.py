"""`python -m export plan BUNDLE --on-runpod`: against RunPod's pod API on localhost, which runs the pod's real server.

What a pod would need a GPU for, the building itself, is a script here that adds a file and writes the manifest.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import urllib3

from engine.bundle import open_bundle
from export.command import interrupts
from export.pods.api import Api
from tests.bundles import overflowing
from tests.runpod_api import KEY, PRICES, EmulatedApi

pytestmark = pytest.mark.slow

GPUS = "NVIDIA L4,NVIDIA A40"
KINDS = ("good", "fail", "hang", "evil", "lie", "die")
"""What the script does, handed over as an option that the real command has."""
BUILDER = """
import os, shutil, signal, sys, time
from dataclasses import replace
from pathlib import Path
from engine.bundle import open_bundle, write_manifest
folder, kind = Path(sys.argv[1]), ("good", "fail", "hang", "evil", "lie", "die")[int(sys.argv[3])]
print("building", kind, *sys.argv[4:], flush=True)
if kind == "die":
    os.kill(os.getppid(), signal.SIGKILL)
    sys.exit()
plans = folder / "graphs/model/plans"
plans.mkdir(exist_ok=True)
(plans / f"sm_{len(list(plans.glob('*.plan')))}.plan").write_bytes(b"plan" * 6_000_000)
(plans / "timing.cache").write_bytes(os.urandom(8))  # of another GPU than the last one's
(folder / "parity.json").write_text("{}")
if kind == "fail":
    print("no such tactic")
    sys.exit(3 if "--no-library-tactics" in sys.argv else 1)
if kind == "hang":
    time.sleep(600)
meddles = kind == "evil" and "--no-library-tactics" in sys.argv
if kind == "evil" and not meddles:
    (folder / "tokenizer.json").write_text("{}")
manifest = open_bundle(folder).manifest
graph = manifest.graphs["model"]
if "fp16" not in graph.onnx:
    shutil.copyfile(folder / "graphs/model/fp32.onnx", folder / "graphs/model/fp16.onnx")
    graph = replace(graph, onnx={**graph.onnx, "fp16": "graphs/model/fp16.onnx"})
    manifest = replace(manifest, graphs={"model": graph})
if meddles:
    manifest = replace(manifest, task_config={**manifest.task_config, "normalize": False})
write_manifest(folder, manifest)
if kind == "lie":
    plan = next(plans.glob("*.plan"))
    plan.write_bytes(plan.read_bytes()[:-1] + b"!")
print("built", flush=True)
"""
PLAN = "graphs/model/plans/sm_0.plan"
KEPT = f"; {PLAN} had come by then and stays; sign the bundle again if it was signed"
POD = """
import os, sys
from export.pods import server
server.COMMAND = (sys.executable, {builder!r})
sys.exit(server.main(port=int(os.environ["PORT_HERE"])))
"""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[EmulatedApi]:
    builder, pod = tmp_path / "builder.py", tmp_path / "pod.py"
    root = f"import sys; sys.path.insert(0, {str(Path.cwd())!r})\n"
    builder.write_text(root + BUILDER)
    pod.write_text(root + POD.format(builder=str(builder)))
    with EmulatedApi((sys.executable, str(pod)), scratch=str(tmp_path)) as api:
        yield api


def start(
    api: EmulatedApi, bundle: Path, *arguments: str, gpus: str = GPUS, key: str = KEY, **environ: str
) -> subprocess.Popen[str]:
    if arguments[0] in KINDS:
        arguments = ("--optimization-level", str(KINDS.index(arguments[0])), *arguments[1:])
    fixed = ["--on-runpod", gpus, "--image", "registry.example/worker:builder", "--proxy", api.proxy, "--pause", "0.2"]
    return subprocess.Popen(
        [sys.executable, "-m", "export", "plan", str(bundle), *fixed, *arguments],
        env={**os.environ, "RUNPOD_API_BASE_URL": api.url, "RUNPOD_API_KEY": key, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def order(api: EmulatedApi, monkeypatch: Any, bundle: Path, *arguments: str, gpus: str = "NVIDIA L4") -> int:
    """The command in this process; the exit code."""
    from export.__main__ import main

    monkeypatch.setenv("RUNPOD_API_BASE_URL", api.url)
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    fixed = ["--on-runpod", gpus, "--image", "x", "--proxy", api.proxy, "--pause", "0.2"]
    return main(["plan", str(bundle), *fixed, *arguments])


def run(api: EmulatedApi, bundle: Path, *arguments: str, **options: str) -> tuple[int, str, str]:
    process = start(api, bundle, *arguments, **options)
    out, err = process.communicate(timeout=40)
    assert api.pods == {}, "a pod was left running"
    return process.returncode, out, err


def content(bundle: Path) -> dict[str, bytes]:
    return {str(path.relative_to(bundle)): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def test_a_plan_of_every_gpu_comes_back(api: EmulatedApi, small_bundle: Path):
    as_it_was = open_bundle(small_bundle).manifest
    before = as_it_was.files
    code, out, err = run(api, small_bundle, "good", "--precision", "fp16")
    assert code == 0, err
    bundle = open_bundle(small_bundle)
    bundle.verify()
    plans = [name for name in bundle.manifest.files if name.endswith(".plan")]
    assert plans == ["graphs/model/plans/sm_0.plan", "graphs/model/plans/sm_1.plan"]
    assert bundle.manifest.files[plans[0]][0] > pod_piece(), "more than one piece"
    assert {name: bundle.manifest.files[name] for name in before} == dict(before)
    onnx = {**as_it_was.graphs["model"].onnx, "fp16": "graphs/model/fp16.onnx"}
    graphs = {"model": replace(as_it_was.graphs["model"], onnx=onnx)}
    assert bundle.manifest == replace(as_it_was, graphs=graphs, files=bundle.manifest.files)
    assert "  | building good --precision fp16" in out
    assert [pod["gpu"] for pod in api.created] == [{"id": name, "count": 1} for name in GPUS.split(",")]
    assert [entry.name for entry in small_bundle.parent.iterdir() if "partial" in entry.name] == []
    for pod in api.created:
        assert pod["image"] == "registry.example/worker:builder"
        assert (pod["ports"], pod["cloud"], pod["disk"]) == (["8000/http"], "SECURE", 10)
        assert set(pod["env"]) == {"PLAN_TOKEN", "PLAN_TIME_LIMIT_S"}
    assert api.created[0]["env"]["PLAN_TOKEN"] != api.created[1]["env"]["PLAN_TOKEN"]


def pod_piece() -> int:
    from export.pods.server import PIECE

    return PIECE


def test_a_dry_run_creates_nothing(api: EmulatedApi, small_bundle: Path):
    before = content(small_bundle)
    code, out, err = run(api, small_bundle, "--dry-run", "--time-limit", "3600", "--cost-limit", "0.42")
    assert code == 0, err
    assert [line.split()[-2:] for line in out.splitlines()[1:3]] == [["$0.44", "$0.42"], ["$0.40", "$0.40"]]
    assert "no pod was created" in out
    assert api.created == []
    assert content(small_bundle) == before


@pytest.mark.parametrize(
    ("kind", "exit_code", "sentence"),
    [
        ("fail", 1, "the plans could not be built on the pod"),
        ("fail --no-library-tactics", 3, "the plans could not be built on the pod"),
        ("evil", 2, "the pod changed tokenizer.json; the bundle here stays as it was"),
        ("lie", 2, "does not match the SHA-256 in the manifest"),
        ("evil --no-library-tactics", 2, "the pod changed task_config in manifest.json; the bundle here stays"),
    ],
)
def test_a_build_that_goes_wrong_changes_nothing(
    api: EmulatedApi, small_bundle: Path, kind: str, exit_code: int, sentence: str
):
    before = content(small_bundle)
    code, out, err = run(api, small_bundle, *kind.split())
    assert code == exit_code
    assert sentence in err
    assert "fail" not in kind or "no such tactic" in out
    assert len(api.created) == 1, "the next GPU is not paid for"
    assert content(small_bundle) == before


@pytest.mark.parametrize(
    ("last", "gpus", "code", "plans"),
    [("pod ", "NVIDIA L4", 130, 0), ("fetch ", "NVIDIA L4", 0, 1), ("fetch ", GPUS, 130, 1)],
    ids=["before a plan is there", "behind the last plan", "between two plans"],
)
def test_whoever_reads_the_output_ends(
    api: EmulatedApi, small_bundle: Path, last: str, gpus: str, code: int, plans: int
):
    with start(api, small_bundle, "good", gpus=gpus, PYTHONUNBUFFERED="1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while not process.stdout.readline().startswith(last):
            assert process.poll() is None
        process.stdout.close()
        said = set(process.stderr.read().splitlines())
        assert process.wait(timeout=40) == code
    kept = {f"interrupted{KEPT}"} if code and plans else set()
    assert said - {"warning: the output cannot be written (Broken pipe)"} == kept
    assert api.pods == {}
    assert len(api.created) == 1, "the next GPU is not paid for"
    assert len(list(small_bundle.rglob("*.plan"))) == plans


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_ends_its_pod(api: EmulatedApi, small_bundle: Path, number: signal.Signals):
    before = content(small_bundle)
    process = start(api, small_bundle, "hang")
    deadline = time.monotonic() + 60
    assert process.stdout is not None
    while "building hang" not in process.stdout.readline():
        assert time.monotonic() < deadline
    assert len(api.pods) == 1
    process.send_signal(number)
    process.send_signal(number)  # the impatient
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert api.pods == {}
    assert content(small_bundle) == before


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_ctrl_c_while_a_pod_is_ended_rents_no_other(
    api: EmulatedApi, small_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, options: tuple[str, ...]
):
    """The plan that has come stays, and is named."""
    named = Api.named

    def interrupted(self: Api, name: str) -> list[str]:
        signal.raise_signal(signal.SIGINT)
        return named(self, name)

    monkeypatch.setattr(interrupts, "_came", False)
    monkeypatch.setattr(Api, "named", interrupted)
    assert order(api, monkeypatch, small_bundle, "--optimization-level", "0", *options, gpus=GPUS) == 130
    assert (len(api.created), api.pods) == (1, {})
    out, err = capfd.readouterr()
    assert err.splitlines()[-1] == f"interrupted{KEPT}"
    if options:
        answer = json.loads(out)
        assert (answer["status"], answer["error"]) == ("interrupted", f"interrupted{KEPT}")
        assert list(answer["plans"]) == [PLAN]
        assert answer["sha256"] == open_bundle(small_bundle).sha256


def test_a_plan_stays_where_the_next_gpu_is_not_free(
    api: EmulatedApi, small_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    create = Api.create

    def created(self: Api, gpu_type: str, order: Any) -> str:
        api.nothing_free = bool(api.created)
        return create(self, gpu_type, order)

    monkeypatch.setattr(Api, "create", created)
    assert order(api, monkeypatch, small_bundle, "--optimization-level", "0", gpus=GPUS) == 3
    assert capsys.readouterr().err.endswith(f"; try again, or choose another GPU or cloud{KEPT}\n")
    assert len(list(small_bundle.rglob("*.plan"))) == 1


def test_the_cost_limit_ends_a_pod(api: EmulatedApi, small_bundle: Path, monkeypatch, capsys):
    """A tenth of a cent buys 3.6 s at a dollar an hour; an H100 less."""
    monkeypatch.setattr("export.pods.on_runpod._LEAST_S", 0)
    hang = ("--optimization-level", str(KINDS.index("hang")), "--cost-limit", "0.005")
    assert order(api, monkeypatch, small_bundle, *hang, gpus="NVIDIA H100 80GB HBM3") == 2
    assert "raise --time-limit or --cost-limit" in capsys.readouterr().err
    assert (len(api.created), api.pods) == (1, {})


def test_for_what_is_left_of_a_cost_limit_no_pod_is_rented(api: EmulatedApi, small_bundle: Path, monkeypatch, capsys):
    """The limit buys a minute and a bit of either GPU, and the first one's build takes longer than the bit."""
    monkeypatch.setitem(PRICES, "NVIDIA L4", (60.0, None))
    monkeypatch.setitem(PRICES, "NVIDIA A40", (60.0, None))
    options = ("--optimization-level", "0", "--cost-limit", "1.001")
    assert order(api, monkeypatch, small_bundle, *options, gpus=GPUS) == 2
    sentence = rf"error: --cost-limit leaves \d+ s of NVIDIA A40, and a pod needs a minute; raise it{re.escape(KEPT)}"
    assert re.fullmatch(sentence, capsys.readouterr().err.splitlines()[-1])
    assert [pod["gpu"]["id"] for pod in api.created] == ["NVIDIA L4"]


def test_a_pod_whose_creation_was_never_answered_is_ended(api: EmulatedApi, small_bundle: Path):
    api.drop_creation_reply = True
    code, _, err = run(api, small_bundle, "good")
    assert (code, err) == (3, "error: RunPod's API cannot be reached (ConnectionError); try again\n")
    assert len(api.created) == 1


def test_a_pod_that_cannot_be_ended_is_named(api: EmulatedApi, small_bundle: Path, monkeypatch, capsys):
    api.drop_creation_reply, api.fail_terminations = True, 99
    monkeypatch.setattr("export.pods.pod._ENDING_ATTEMPTS", 1)
    assert order(api, monkeypatch, small_bundle) == 2
    (name,) = (pod["name"] for pod in api.created)
    assert capsys.readouterr().err == (
        f"error: the pod {name} may still run and cost money (RunPod's API answered 500 (please try again); try "
        "again later, or with a newer version of this worker); terminate it in RunPod's console\n"
    )


def test_a_pod_that_dies_while_it_builds(api: EmulatedApi, small_bundle: Path):
    before = content(small_bundle)
    code, _, err = run(api, small_bundle, "die")
    assert code == 3
    assert err.startswith("error: the pod cannot be reached (HTTP Error 502: ")
    assert err.endswith(") and was ended; try again\n")
    assert len(api.created) == 1
    assert content(small_bundle) == before


def test_what_no_gpu_is_needed_to_find_out_costs_nothing(api: EmulatedApi, small_bundle: Path, monkeypatch, capsys):
    assert order(api, monkeypatch, small_bundle, "--lengths", "64") == 2
    assert "--lengths holds 64, and toy takes at most 32" in capsys.readouterr().err
    assert order(api, monkeypatch, small_bundle, "--precision", "int8") == 2
    assert "the bundle has no int8 graph for TensorRT" in capsys.readouterr().err
    overflowing(small_bundle)
    before = content(small_bundle)
    assert order(api, monkeypatch, small_bundle) == 1
    assert "outputs in fp16 differ from fp32 on the CPU" in capsys.readouterr().err
    assert order(api, monkeypatch, small_bundle, "--precision", "fp32", "--dry-run") == 0
    assert api.created == []
    assert content(small_bundle) == before


def test_without_onnx_nothing_is_checked_before(api: EmulatedApi, small_bundle: Path, monkeypatch, capsys):
    overflowing(small_bundle)
    monkeypatch.setattr("export.pods.on_runpod.find_spec", lambda name: None)
    api.nothing_free = True
    assert order(api, monkeypatch, small_bundle) == 3
    assert "not checked before: onnx and onnxruntime not installed here" in capsys.readouterr().out


def test_with_json_stdout_is_one_object(api: EmulatedApi, small_bundle: Path, monkeypatch, capfd):
    assert order(api, monkeypatch, small_bundle, "--json", "--dry-run") == 0
    found = capfd.readouterr()
    answer = json.loads(found.out)
    assert (answer["status"], answer["exit_code"]) == ("written", 0)
    assert "no pod was created" in found.err
    assert order(api, monkeypatch, small_bundle, "--json", gpus="NVIDIA L5") == 2
    assert json.loads(capfd.readouterr().out)["error"].startswith("RunPod knows no GPU 'NVIDIA L5'")


def test_a_termination_that_fails_is_tried_again(api: EmulatedApi, small_bundle: Path):
    api.fail_terminations = 2
    assert run(api, small_bundle, "good", gpus="NVIDIA L4")[0] == 0


def test_a_pod_that_ends_itself_is_noticed(api: EmulatedApi, small_bundle: Path, tmp_path: Path):
    (tmp_path / "pod.py").write_text("raise SystemExit(1)")
    code, _, err = run(api, small_bundle, "good")
    assert code == 2
    assert "the pod ended before it answered" in err


def test_the_pod_ends_itself_when_nobody_does(api: EmulatedApi, small_bundle: Path):
    """The machine that started it is gone: its process is killed without a chance to clean up."""
    process = start(api, small_bundle, "hang", "--cost-limit", "0.12", gpus="NVIDIA H100 80GB HBM3")
    deadline = time.monotonic() + 60
    while not api.pods:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.communicate()
    limit = float(api.created[0]["env"]["PLAN_TIME_LIMIT_S"])
    assert limit == pytest.approx(0.12 / 2.99 * 3600 + 60, abs=5), "its own limit is a minute after ours"


def test_only_who_knows_the_token_is_answered(api: EmulatedApi, small_bundle: Path):
    process = start(api, small_bundle, "hang", gpus="NVIDIA L4")
    assert process.stdout is not None
    while "building hang" not in process.stdout.readline():
        pass
    url = api.proxy.format(pod="pod1")
    http = urllib3.PoolManager()
    token = api.created[0]["env"]["PLAN_TOKEN"]
    for given, path, status in [
        ("Bearer wrong", "/state", 401),
        ("", "/files/manifest.json", 401),
        (f"Bearer {token}", "/files/../../../etc/passwd", 404),
        (f"Bearer {token}", "/files/%2e%2e/%2e%2e/etc/passwd", 404),
        (f"Bearer {token}", "/files//etc/passwd", 404),
        (f"Bearer {token}", "/state", 200),
    ]:
        assert http.request("GET", url + path, headers={"Authorization": given}).status == status, path
    http.clear()
    process.terminate()
    process.communicate(timeout=60)
    assert api.pods == {}


@pytest.mark.parametrize(
    ("options", "gpus", "sentence"),
    [
        ([], "NVIDIA GeForce RTX 5090", "RTX 5090: Blackwell needs CUDA 12, this worker is built on 11.8; choose"),
        ([], "NVIDIA B200,NVIDIA L4", "NVIDIA B200: Blackwell"),
        ([], "NVIDIA L5", "RunPod knows no GPU 'NVIDIA L5'"),
        ([], " , ", "--on-runpod names no GPU; give RunPod's ids"),
        (["--cloud", "community"], "NVIDIA A40", "offers no NVIDIA A40 in its community cloud"),
        (["--cost-limit", "0"], "NVIDIA L4", "--cost-limit takes dollars"),
        (["--time-limit", "5"], "NVIDIA L4", "--time-limit seconds from 60"),
        (["--image", ""], "NVIDIA L4", "--image is empty; name this worker's image, built with WITH_BUILDER=1"),
        (["--image", " \t"], "NVIDIA L4", "--image is empty; name this worker's image"),
        (["--image", 'a"b'], "NVIDIA L4", "--image, --registry and --on-runpod take plain names; leave out"),
        (["--registry", "a\nb"], "NVIDIA L4", "--image, --registry and --on-runpod take plain names; leave out"),
        (["--cloud", "moon"], "NVIDIA L4", "invalid choice: 'moon' (choose from"),
    ],
)
def test_orders_that_cannot_be_filled(
    api: EmulatedApi, small_bundle: Path, options: list[str], gpus: str, sentence: str, monkeypatch, capsys
):
    assert order(api, monkeypatch, small_bundle, *options, gpus=gpus) == 2
    assert sentence in capsys.readouterr().err
    assert api.created == []


def test_options_for_the_pod_are_told_from_ours(small_bundle: Path):
    from export.errors import Refused
    from export.pods.on_runpod import order_from_argv

    ours = ["--on-runpod", "NVIDIA L4, NVIDIA A40,NVIDIA L4", "--image", "x"]
    order = order_from_argv([str(small_bundle), "--precision", "fp16", *ours, "--batches", "1,8"])
    assert order.plan_arguments == ("--precision", "fp16", "--batches", "1,8")
    assert order.gpu_types == ("NVIDIA L4", "NVIDIA A40")
    with pytest.raises(Refused, match="--precison"):
        order_from_argv([str(small_bundle), *ours, "--precison", "fp16"])
    with pytest.raises(Refused, match="the bundle comes first"):
        order_from_argv(["--precision", "fp16", str(small_bundle), *ours])


def test_a_gpu_that_is_not_free(api: EmulatedApi, small_bundle: Path):
    api.nothing_free = True
    code, _, err = run(api, small_bundle, "good")
    assert code == 3
    assert err == (
        "error: RunPod has no NVIDIA L4 free now (There are no longer any instances available with the requested "
        "specifications.); try again, or choose another GPU or cloud\n"
    )


def test_a_wrong_key_is_a_sentence(api: EmulatedApi, small_bundle: Path):
    code, _, err = run(api, small_bundle, "good", key="wrong")
    assert code == 2
    assert err == (
        "error: RunPod refused (401): missing bearer token; check RUNPOD_API_KEY, the account's balance and the names "
        "in the order\n"
    )


def test_an_image_has_to_be_named(small_bundle: Path, capsys):
    from export.__main__ import main

    assert main(["plan", str(small_bundle), f"--on-runpod={GPUS}"]) == 2
    assert "the following arguments are required: --image; see python -m export plan --on-runpod" in (
        capsys.readouterr().err
    )


def test_an_api_that_does_not_answer(small_bundle: Path, monkeypatch, capsys):
    with EmulatedApi() as gone:
        pass
    assert order(gone, monkeypatch, small_bundle) == 3
    assert capsys.readouterr().err == "error: RunPod's API cannot be reached (ConnectionError); try again\n"


def test_without_a_key_nothing_is_asked(api: EmulatedApi, small_bundle: Path, monkeypatch, capsys):
    from export.__main__ import main

    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    monkeypatch.setattr("runpod.api_key", None)
    assert main(["plan", str(small_bundle), f"--on-runpod={GPUS}", "--image", "x"]) == 2
    assert "no RunPod API key; set RUNPOD_API_KEY to one that may create pods" in capsys.readouterr().err
