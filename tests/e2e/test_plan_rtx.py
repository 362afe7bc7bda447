"""Networks are parsed, optimised and serialised for real, without a GPU, by TensorRT-RTX; its plans are its own.

Every task's test model is here; `make test` builds a text encoder, a decoder and a network of each other modality,
`make test-zoo` the rest.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import zoo
from engine.bucket import Bucket
from engine.bundle import SIGNATURE, Bundle, open_bundle, write_manifest
from engine.plans.sidecar import Machine, mismatch, plans_of, stale
from export.__main__ import export, main
from export.recipe import Recipe
from export.tasks import TAGS, export_task
from tests import models
from tests.bundles import overflowing, toy_model, write_small_bundle

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")


TASKS_BUILT: set[str] = {"feature-extraction"}


def _export(make: Callable[[Path], Path], *options: str) -> Callable[[Path], Path]:
    def export(folder: Path) -> Path:
        out = folder / "bundle"
        assert main([str(make(folder / "model")), "--out", str(out), *options]) == 0
        return out

    return export


def _of_zoo(task: str, architecture: str) -> Callable[[Path], Path]:
    """The bundle of a model of the zoo, of which a fork may have removed some."""
    cases = [one for one in zoo.cases() if (one.task, one.architecture) == (task, architecture)]
    TASKS_BUILT.update(case.task for case in cases)

    def make(folder: Path) -> Path:
        if not cases:
            pytest.skip(f"no {architecture} for {task} in benchmarks/zoo")
        (case,) = cases
        export(Recipe(str(case.make(folder / "model")), task, folder / "bundle", **case.options))
        return folder / "bundle"

    return make


NETWORKS: dict[str, Callable[[Path], Path]] = {
    "bert": _export(models.tiny_bert, "--task", "feature-extraction"),
    "qwen3": _export(models.tiny_qwen3, "--task", "feature-extraction"),
    "vit": _of_zoo("image-classification", "vit"),
    "detr": _of_zoo("object-detection", "detr"),
    "clip": _of_zoo("zero-shot-image-classification", "clip"),
    "wav2vec2": _of_zoo("automatic-speech-recognition", "wav2vec2"),
}
"""One a modality, and what is peculiar: an image on a canvas, two graphs."""
FURTHER: dict[str, Callable[[Path], Path]] = {
    "roberta": _export(models.tiny_roberta, "--task", "feature-extraction"),
    "mpnet": _export(models.tiny_mpnet, "--task", "feature-extraction"),
    **{
        task: _of_zoo(task, architecture)
        for task, architecture in {
            "sentence-similarity": "distilbert",
            "text-classification": "deberta-v2",
            "text-ranking": "xlm-roberta",
            "zero-shot-classification": "albert",
            "token-classification": "electra",
            "question-answering": "bert",
            "fill-mask": "bert",
            "sparse-encoder": "modernbert",
            "image-feature-extraction": "dinov2",
            "image-segmentation": "segformer",
            "depth-estimation": "dpt",
            "image-text-embedding": "siglip",
            "audio-classification": "wav2vec2",
        }.items()
    },
    "swin": _of_zoo("image-classification", "swin"),
    "ast": _of_zoo("audio-classification", "ast"),
}
FURTHER |= {  # of a fork
    task: _of_zoo(task, architecture)
    for task, architecture in {case.task: case.architecture for case in reversed(zoo.cases())}.items()
    if task not in TASKS_BUILT
}
BUILT = [*NETWORKS, *(pytest.param(name, marks=pytest.mark.zoo) for name in FURTHER)]
RTX = ("--builder", "tensorrt-rtx", "--compute-capability", "8.9")
TINY = ("--batches", "1,4", "--lengths", "16,max", "--optimization-level", "0")
MAX_LENGTH = 32


@pytest.fixture(scope="module", params=BUILT)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return (NETWORKS | FURTHER)[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "bundle")


def plan(bundle: Path, *options: str, targets: str = "8.9") -> int:
    return main(["plan", str(bundle), "--builder", "tensorrt-rtx", "--compute-capability", targets, *options])


def opened(path: Path) -> Bundle:
    bundle = open_bundle(path)
    bundle.verify()
    return bundle


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_network_builds(exported: Path, precision: str, tmp_path: Path):
    path = Path(shutil.copytree(exported, tmp_path / "bundle"))
    assert plan(path, "--precision", precision, *TINY) == 0
    bundle = opened(path)
    for graph in bundle.manifest.graphs.values():
        assert precision in graph.onnx
    for name in bundle.manifest.graphs:
        (found,) = plans_of(bundle, name)
        assert found.name == f"sm_89-rtx1.7.1-{precision}.plan"
        grows = any(spec.length_axis is not None for spec in bundle.manifest.graphs[name].inputs)
        lengths = (16, bundle.manifest.max_length(name)) if grows else (1,)
        buckets = [Bucket(batch, length) for batch in (1, 4) for length in lengths]
        assert list(found.plan.ladder) == buckets
        assert len(found.plan.profiles) == len(buckets)
        assert found.plan.size == found.path.stat().st_size > 20_000
        assert stale(found.plan, bundle) is None
    if precision == "fp16":
        _figures_are_of_half_precision(path)


def _figures_are_of_half_precision(path: Path) -> None:
    graphs = json.loads((path / "parity.json").read_text())["graphs"]
    for name, graph in open_bundle(path).manifest.graphs.items():
        figures = graphs[f"graphs/{name}/fp16.onnx"]
        assert figures["min_cosine"] >= 0.999
        assert figures["max_relative_difference"] <= 1e-2
        if any(output.dtype.startswith("float") for output in graph.outputs):  # ids alone may all be equal
            assert figures["max_relative_difference"] > 0  # 0 would be fp32 under another name


def test_every_task_that_has_a_model_is_among_them():
    missing = {tag for tag in TAGS if export_task(tag).has_model} - TASKS_BUILT
    assert not missing, f"no model in benchmarks/zoo (CASES) for {missing}; see docs/adding-a-task.md"


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_the_other_precisions_build(tmp_path: Path, precision: str):
    path = NETWORKS["bert"](tmp_path)
    assert plan(path, "--precision", precision, *TINY) == 0
    (found,) = plans_of(opened(path))
    assert (found.plan.precision, found.plan.onnx) == (
        precision,
        f"graphs/model/{'bf16' if precision == 'bf16' else 'fp32'}.onnx",
    )


def _resnet(folder: Path) -> Path:
    from benchmarks.zoo.images import task_model

    return task_model(folder, "image-classification", "resnet")


@pytest.mark.parametrize("network", ["bert", "resnet"])
def test_the_bundles_own_precision_is_taken_and_int8_builds_from_the_scales_in_its_graph(tmp_path: Path, network: str):
    options = ("--precision", "tensorrt=int8", "--parity-threshold", "0.5")
    if network == "bert":
        path = _export(models.tiny_bert, "--task", "feature-extraction", *options)(tmp_path)
    else:
        path = _export(_resnet, *options)(tmp_path)
    assert plan(path, *TINY) == 0
    (found,) = plans_of(opened(path))
    assert (found.plan.precision, found.plan.onnx) == ("int8", "graphs/model/int8.onnx")
    assert stale(found.plan, opened(path)) is None


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        (("--targets", "cpu,tensorrt", "--plan-precision", "tf32"), "tf32"),
        (("--precision", "tensorrt=fp16", "--plan-precision", "bf16"), "bf16"),
        (("--precision", "tensorrt=fp16"), "fp16"),
        # int8 is left by the ladder, so that there is no graph for plans in int8
        (
            ("--precision", "tensorrt=int8", "--parity-threshold", "min_cosine=0.99999", "--plan-precision", "int8"),
            "fp16",
        ),
    ],
)
def test_an_export_builds_plans_in_the_precision_that_was_asked_for(
    tmp_path: Path, options: tuple[str, ...], precision: str
):
    path = _export(models.tiny_bert, "--task", "feature-extraction", "--plan", *options, *RTX, *TINY)(tmp_path)
    (found,) = plans_of(opened(path))
    assert found.plan.precision == precision


@pytest.mark.parametrize(
    ("options", "done", "sentence"),
    [
        (("--lengths", "16,512"), ["load", "onnx", "optimize"], "--lengths holds 512, and tiny-bert takes at most"),
        (("--form", "hints"), [], "--form hints is for TensorRT 8; later versions run the types of the graph"),
        (
            ("--precision", "tensorrt=bf16", "--compute-capability", "7.5"),
            [],
            "compute capability 7.5 has no bf16; use fp16 or fp32",
        ),
    ],
)
def test_an_export_refuses_what_it_cannot_build_before_the_gate(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: tuple[str, ...], done: list[str], sentence: str
):
    command = [str(models.tiny_bert(tmp_path / "tiny-bert")), "--task", "feature-extraction", "--plan", *RTX, *options]
    assert main([*command, "--out", str(tmp_path / "bundle"), "--json"]) == 2
    answer = json.loads(capfd.readouterr().out)
    assert sentence in answer["error"]
    assert [stage["name"] for stage in answer["stages"]] == done
    assert not (tmp_path / "bundle").exists()


def test_int8_without_a_graph_that_has_it_is_refused(bundle: Path, capsys: pytest.CaptureFixture[str]):
    before = snapshot(bundle)
    assert plan(bundle, *TINY, "--precision", "int8") == 2
    assert capsys.readouterr().err == (
        "error: the bundle has no int8 graph for TensorRT; export the model with --precision tensorrt=int8\n"
    )
    assert snapshot(bundle) == before


def test_its_plans_are_never_offered_to_plain_tensorrt(bundle: Path):
    assert plan(bundle, *TINY) == 0
    (found,) = plans_of(opened(bundle))
    assert found.plan.runtime == "tensorrt_rtx"
    said = mismatch(found.plan, Machine("10.13.0.35", "8.9"))
    assert said is not None
    assert "loads only its own" in said


def test_one_plan_a_target_and_one_profile_a_length(bundle: Path):
    assert plan(bundle, *TINY, "--profiles", "length", targets="8.6,12.0") == 0
    found = plans_of(opened(bundle))
    assert [one.plan.compute_capability for one in found] == ["12.0", "8.6"]
    assert [one.buckets for one in found[0].plan.profiles] == [(Bucket(1, n), Bucket(4, n)) for n in (16, MAX_LENGTH)]


def test_a_second_precision_leaves_the_first_as_it_was(bundle: Path):
    assert plan(bundle, "--precision", "fp32", *TINY) == 0
    assert plan(bundle, "--precision", "fp16", *TINY) == 0
    found = plans_of(opened(bundle))
    assert [one.plan.precision for one in found] == ["fp16", "fp32"]
    assert [stale(one.plan, opened(bundle)) for one in found] == [None, None]


def test_building_again_replaces_a_plan_and_touches_no_copy_of_the_bundle(bundle: Path, tmp_path: Path):
    assert plan(bundle, *TINY) == 0
    linked = tmp_path / "linked"
    shutil.copytree(bundle, linked, copy_function=os.link)
    before = snapshot(linked)
    assert plan(bundle, "--batches", "2", "--lengths", "8", "--optimization-level", "0") == 0
    (found,) = plans_of(opened(bundle))
    assert list(found.plan.ladder) == [Bucket(2, 8)]
    assert snapshot(linked) == before


def test_an_operator_that_the_parser_does_not_know_is_named(bundle: Path, capsys: pytest.CaptureFixture[str]):
    model = toy_model()
    model.graph.node[-1].output[0] = "sums_scaled"
    strange = helper.make_node("Unheard", ["sums_scaled"], ["embedding"], name="odd", domain="nowhere")
    model.graph.node.append(strange)
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    file = bundle / "graphs/model/fp32.onnx"
    file.unlink()
    onnx.save(model, file)
    write_manifest(bundle, open_bundle(bundle).manifest)
    before = snapshot(bundle)
    assert plan(bundle, "--precision", "fp32", *TINY) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: TensorRT 1.7.1.116 cannot read fp32.onnx: ")
    assert "Unheard" in said
    assert snapshot(bundle) == before
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]


def test_with_json_stdout_is_one_object(bundle: Path, capfd: pytest.CaptureFixture[str]):
    assert plan(bundle, *TINY, "--json", targets="8.6,8.9") == 0
    found = capfd.readouterr()
    answer = json.loads(found.out)
    names = ["graphs/model/plans/sm_86-rtx1.7.1-fp16.plan", "graphs/model/plans/sm_89-rtx1.7.1-fp16.plan"]
    assert (answer["status"], answer["exit_code"]) == ("written", 0)
    assert answer["plans"] == {name: (bundle / name).stat().st_size for name in names}
    assert (answer["bundle"], answer["sha256"]) == (str(bundle), opened(bundle).sha256)
    assert [stage["name"] for stage in answer["stages"]] == ["verify", "fp16", "plan", "plan"]
    assert answer["next"] == f"python -m engine inspect {bundle}"
    assert "sm_86-rtx1.7.1-fp16, 4 profiles" in found.err  # the lines are there as well


@pytest.mark.parametrize(("inside", "path"), [("", "."), ("graphs", ".."), ("", "../bundle")])
def test_a_bundle_takes_a_plan_from_within_and_loses_its_signature(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], inside: str, path: str
):
    (bundle / SIGNATURE).write_text("of somebody\n")
    monkeypatch.chdir(bundle / inside)
    assert plan(Path(path), *TINY, "--json") == 0
    assert len(plans_of(opened(bundle))) == 1
    assert not (bundle / SIGNATURE).exists()
    assert [one.name for one in bundle.parent.iterdir()] == [bundle.name]
    printed = capfd.readouterr()
    answer = json.loads(printed.out)
    assert answer["bundle"] == str(bundle)
    assert answer["next"] == f"cd {bundle} && python -m export sign {bundle} --key FILE"
    assert "signature removed, for it was of the bundle as it was; sign it again\n" in printed.err


@pytest.mark.parametrize(
    ("options", "code", "status", "sentence"),
    [
        (("--lengths", "64"), 2, "refused", "--lengths holds 64"),
        (("--no-such",), 2, "refused", "unrecognized arguments: --no-such"),
        ((), 1, "gate failed", "outputs in fp16 differ from fp32 on the CPU"),
    ],
)
def test_with_json_a_failure_is_one_object(
    bundle: Path, capfd: pytest.CaptureFixture[str], options: tuple[str, ...], code: int, status: str, sentence: str
):
    """What overflows in half precision passes ONNX Runtime's fp16; rounding finds it, before anything is built."""
    overflowing(bundle)
    assert plan(bundle, *TINY, *options, "--json") == code
    found = capfd.readouterr()
    answer = json.loads(found.out)
    assert (answer["status"], answer["exit_code"]) == (status, code)
    assert sentence in answer["error"]
    assert answer["error"] in found.err
    assert ("worst" in answer) == (code == 1)
    assert "plans" not in answer
    assert not list(bundle.rglob("*.plan"))


def test_a_graph_that_half_precision_cannot_hold_fails_the_gate(bundle: Path, capsys: pytest.CaptureFixture[str]):
    """Sums of products that fp16 has no number for, made small again."""
    model = toy_model()
    model.graph.node[-1].output[0] = "small"
    for name, dims, value in (("up", [8, 256], 6e4), ("down", [256, 8], 1e-6)):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, dims, [value] * 2048))
    model.graph.node.append(helper.make_node("MatMul", ["small", "up"], ["huge"], name="up"))
    model.graph.node.append(helper.make_node("MatMul", ["huge", "down"], ["embedding"], name="down"))
    file = bundle / "graphs/model/fp32.onnx"
    file.unlink()
    onnx.save(model, file)
    write_manifest(bundle, open_bundle(bundle).manifest)
    before = snapshot(bundle)
    assert plan(bundle, *TINY) == 1
    said = capsys.readouterr().err
    assert "differ from fp32 on the CPU" in said
    assert "1 x 16" in said
    assert snapshot(bundle) == before


def test_a_boot_can_build_from_a_bundle_that_it_may_not_write(bundle: Path, tmp_path: Path):
    """What BUILD_ON_BOOT does, in a copy made of links, with the other builder."""
    from engine.plans import build_plan, plan_cache

    (bundle / SIGNATURE).write_text("of somebody\n")
    before = snapshot(bundle)
    command = (*build_plan.BUILD_COMMAND, "--builder", "tensorrt-rtx", "--compute-capability", "8.9", *TINY)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_plan, "BUILD_COMMAND", command)
        build_plan.build(opened(bundle), tmp_path / "cache", 100, "fp16", said.append, lambda: False)
    (found,) = plan_cache.cached_plans(tmp_path / "cache", opened(bundle), "model")
    plan_cache.verify(found)
    assert (found.plan.runtime, found.plan.precision) == ("tensorrt_rtx", "fp16")
    assert any("4 profiles" in line for line in said)
    assert not any("sign" in line for line in said)  # nobody can: the plan goes elsewhere
    assert snapshot(bundle) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--lengths", "16,64"), "--lengths holds 64, and toy takes at most 32; write max"),
        (("--batches", "1,x"), "'1,x' is not a list of whole numbers"),
        (("--batches", "0"), "'0' is not a list of whole numbers"),
        (("--compute-capability", "9.0"), "cannot build for 9.0; it can for 7.5, 8.0, 8.6"),
        (
            ("--compute-capability", "7.5", "--precision", "bf16"),
            "compute capability 7.5 has no bf16; use fp16 or fp32",
        ),
        (("--compute-capability", "nine"), "'nine' is not a list of compute capabilities"),
        (
            ("--hardware-compatibility", "ampere-plus"),
            "--hardware-compatibility and --version-compatible are for plain TensorRT, not for",
        ),
        (("--optimization-level", "6"), "--optimization-level"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(
    bundle: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
):
    before = snapshot(bundle)
    assert plan(bundle, *options) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert snapshot(bundle) == before


def test_plain_tensorrt_without_a_driver_is_refused_and_does_not_crash(
    bundle: Path, capsys: pytest.CaptureFixture[str]
):
    from engine.probe import gpu

    if gpu() is not None:
        pytest.skip("there is a GPU")
    assert main(["plan", str(bundle)]) == 3
    assert "no NVIDIA driver or no GPU" in capsys.readouterr().err
    assert main(["plan", str(bundle), "--builder", "tensorrt-rtx"]) == 2
    assert "--compute-capability names" in capsys.readouterr().err
