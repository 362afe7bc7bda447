"""What of `export plan --on-runpod` needs no pod: which GPUs may be named, what one may change, how its build ends."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.bundle import CHECKSUM, MANIFEST, Bundle, open_bundle, write_manifest
from engine.errors import BundleError
from export.errors import ParityFailed, Refused, Unavailable
from export.pods.changes import manifest_of, new_files
from export.pods.client import PodClient
from export.pods.gpus import BLACKWELL, UNSERVED, architecture_of
from export.pods.on_runpod import main, order_from_argv
from export.pods.server import Build, server
from tests.ports import serving

PLANS = "graphs/model/plans"
L4, A40 = f"{PLANS}/sm_89-trt10.13.0-fp16", f"{PLANS}/sm_86-trt10.13.0-fp16"
WORKFLOW = Path(__file__).parents[2] / ".github/workflows/image.yml"


def order(gpu_types: str, *options: str) -> tuple[str, ...]:
    return order_from_argv(["bundle", "--on-runpod", gpu_types, "--image", "x", *options]).gpu_types


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("sm_75", ("Tesla T4", "Quadro RTX 4000", "Quadro RTX 5000", "NVIDIA GeForce RTX 2080 Ti")),
        ("sm_80", ("NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB", "NVIDIA A30")),
        ("sm_86", ("NVIDIA A40", "NVIDIA A10", "NVIDIA RTX A2000", "NVIDIA RTX A6000", "NVIDIA GeForce RTX 3090 Ti")),
        ("sm_89", ("NVIDIA L4", "NVIDIA L40", "NVIDIA L40S", "NVIDIA GeForce RTX 4080 SUPER")),
        ("sm_89", ("NVIDIA RTX 2000 Ada Generation", "NVIDIA RTX 5000 Ada Generation")),
        ("sm_90", ("NVIDIA H100 80GB HBM3", "NVIDIA H100 NVL", "NVIDIA H200")),
        (BLACKWELL, ("NVIDIA B200", "NVIDIA GeForce RTX 5090", "NVIDIA RTX PRO 6000 Blackwell Server Edition")),
        (UNSERVED, ("AMD Instinct MI300X OAM", "Tesla V100-SXM2-32GB", "Tesla P100-PCIE-16GB", "Tesla K80")),
        (UNSERVED, ("NVIDIA Quadro GV100", "Quadro P4000", "NVIDIA GeForce GTX 1080 Ti", "NVIDIA TITAN V")),
        ("", ("NVIDIA L5", "of tomorrow")),
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


def test_gpus_that_serve_none_of_the_plans_are_refused():
    sentence = "^Tesla V100-PCIE-16GB, AMD Instinct MI300X OAM: this worker's TensorRT runs on NVIDIA's Turing to"
    with pytest.raises(Refused, match=sentence):
        order("NVIDIA L4,Tesla V100-PCIE-16GB,AMD Instinct MI300X OAM")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--builder tensorrt-rtx --compute-capability 8.9", "tensorrt-rtx builds without a GPU; leave --on-runpod out"),
        ("--form hints", "--form hints is for TensorRT 8, and pods build with the TensorRT 10 of the image; leave it"),
        ("--version-compatible", "--version-compatible needs libnvinfer_lean, which the image of a pod lacks; leave"),
    ],
)
def test_what_the_image_of_a_pod_cannot_build_is_refused(options: str, sentence: str):
    with pytest.raises(Refused, match=re.escape(sentence)):
        order("NVIDIA L4", *options.split())


@pytest.mark.parametrize("options", ["--precision tf32", "--precision bf16", "--hardware-compatibility ampere-plus"])
def test_what_turing_cannot_run_is_refused(options: str):
    asked = options.removeprefix("--precision ")
    sentence = rf"^Tesla T4: Turing has no {asked}; (use fp16 or fp32|leave it out), or choose Ampere to Hopper$"
    with pytest.raises(Refused, match=sentence):
        order("NVIDIA L4,Tesla T4", *options.split())
    assert order("NVIDIA L4", *options.split()) == ("NVIDIA L4",)


def test_what_turing_cannot_run_is_refused_where_the_bundle_asks_for_it(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    monkeypatch.setattr("runpod.api_key", None)
    manifest = open_bundle(small_bundle).manifest
    write_manifest(small_bundle, replace(manifest, precisions={**manifest.precisions, "tensorrt": "bf16"}))
    argv = [str(small_bundle), "--on-runpod", "Tesla T4", "--image", "x"]
    with pytest.raises(Refused, match="^Tesla T4: Turing has no bf16; use fp16 or fp32"):
        main(argv)
    with pytest.raises(Refused, match="no RunPod API key"):
        main([*argv, "--precision", "fp16"])


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
    with pytest.raises(Refused, match="no RunPod API key"):
        main([*argv, "sums", "--precision", "bf16"])


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


def test_a_pod_that_is_started_again_while_it_builds_is_not_waited_for(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    """RunPod starts a container again that ended; what it held is gone."""
    command = (sys.executable, "-uISc", "import time; print('tactic 1'); time.sleep(2)")
    monkeypatch.setattr("export.pods.server.COMMAND", command)
    running = server(Build(small_bundle, small_bundle), "token", 0)

    def start_again(line: str) -> None:
        # An attribute of the class that `server` makes, of which the type of the server says nothing.
        running.RequestHandlerClass.build = Build(small_bundle, small_bundle)  # type: ignore[attr-defined]

    with serving(running) as url:
        client = PodClient(url, "token", time.monotonic() + 20, lambda: True, 0.02)
        with pytest.raises(Unavailable, match="the pod was started again while it built, as where memory ends; try an"):
            client.build([], start_again)
