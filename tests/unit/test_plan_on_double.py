"""`python -m export plan` where the plan runs through the worker's own TensorRT engine, on doubles of both.

The plan's bytes are the double's; parsing and building for real is TensorRT-RTX's affair (tests/e2e/test_plan_rtx.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.bucket import Bucket
from engine.bundle import SIGNATURE, open_bundle
from engine.errors import EngineError
from engine.plans.sidecar import plans_of, stale
from engine.tensors import Array
from export.__main__ import main
from export.plan_from_onnx import _for_target
from export.plans.builder import Builder, Target
from export.plans.network import Built
from export.plans.recipe import PlanRecipe
from export.pods.changes import new_files
from tests.bundles import overflowing
from tests.cuda_double import Device, installed
from tests.plans import SPECS, profile_a_length, profiles
from tests.tensorrt_double import Function, TensorRtDouble, plan_bytes, toy

BATCHES, LENGTHS = (1, 4, 8), (8, 32)
OPTIONS = ("--batches", "1,4,8", "--lengths", "8,32")
Run = Callable[..., int]


def spoiled(value: float, batch: int) -> Function:
    """The toy model, whose last row is `value` in batches of that size."""

    def function(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        found = {name: values.copy() for name, values in toy(inputs).items()}
        if len(found["embedding"]) == batch:
            found["embedding"][-1, 3] = value
        return found

    return function


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, small_bundle: Path) -> Iterator[Run]:
    """Runs the command on a GPU whose plans compute `function`."""

    def run(
        *options: str,
        function: Function = toy,
        device: Device | None = None,
        content: bytes | None = None,
        build: Callable[..., Built] | None = None,
        typed: bool = True,
        gpu: tuple[str, str] = ("8.9", "NVIDIA L4"),
    ) -> int:
        device = device or Device()
        trt = TensorRtDouble(device, function=function)
        target = Target(*gpu, "550.54.15", "12.4")
        made = plan_bytes(profiles(BATCHES, LENGTHS, SPECS)) if content is None else content
        monkeypatch.setattr("export.plan_from_onnx.open_builder", lambda _: Builder(trt, "tensorrt", [target]))
        monkeypatch.setattr("export.plan_from_onnx.build_plan", build or (lambda *_: Built(made, b"timings")))
        for module in ("plan_from_onnx", "plans.builder"):
            monkeypatch.setattr(f"export.{module}.is_strongly_typed", lambda _: typed)
        with installed(device, tensorrt=trt):
            return main(["plan", str(small_bundle), *OPTIONS, *options])

    yield run
    open_bundle(small_bundle).verify()  # whatever became of the plan


def content(bundle: Path) -> dict[str, bytes]:
    return {str(path.relative_to(bundle)): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def test_a_plan_is_kept_with_what_it_measured(plan: Run, small_bundle: Path, capfd: pytest.CaptureFixture[str]):
    device = Device()
    assert plan("--json", device=device) == 0
    assert not device.memory
    bundle = open_bundle(small_bundle)
    (found,) = plans_of(bundle)
    assert list(found.plan.ladder) == [Bucket(batch, length) for batch in BATCHES for length in LENGTHS]
    assert len(found.plan.latencies_us) == 6
    assert all(us > 0 for us in found.plan.latencies_us)
    name = "graphs/model/plans/sm_89-trt10.13.0-fp16.plan"
    assert json.loads((small_bundle / "parity.json").read_text())["plans"][name]["buckets"] == 6
    printed = capfd.readouterr()
    answer = json.loads(printed.out)
    assert answer["plans"] == {name: found.plan.size}
    assert (answer["bundle"], answer["sha256"]) == (str(small_bundle), bundle.sha256)
    assert answer["next"] == f"python -m engine inspect {small_bundle}"
    assert [one["name"] for one in answer["stages"]] == ["verify", "fp16", "plan", "parity"]
    assert "6 buckets, cosine at least" in printed.err


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_what_overflows_on_the_gpu_fails_the_gate(
    plan: Run, small_bundle: Path, capsys: pytest.CaptureFixture[str], value: float
):
    """In one component of one row of the largest batch. No rounding is computed for it: the engine's answers decide."""
    before, device = content(small_bundle), Device()
    assert plan(function=spoiled(value, 8), device=device) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: 2 of 6 outputs in fp16 differ from fp32 on the CPU")
    assert content(small_bundle) == before
    assert not device.memory


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_rows_that_are_not_compared_must_be_finite_all_the_same(
    plan: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: float
):
    monkeypatch.setattr("export.plans.gate._REFERENCE_TOKENS", 8)  # one row of each bucket
    assert plan(function=spoiled(1e-3, 8)) == 0
    assert plan(function=spoiled(value, 8)) == 1
    assert capsys.readouterr().err.startswith("error: 2 of 6 outputs in fp16 differ")


def test_with_a_gpu_its_answers_decide_about_halves(plan: Run, small_bundle: Path):
    """Rounded on the CPU this graph overflows; a kernel that keeps its sums in fp32 does not."""
    overflowing(small_bundle)
    assert plan() == 0


def test_where_all_in_half_fails_on_the_gpu_sums_in_fp32_are_tried(
    plan: Run, small_bundle: Path, capsys: pytest.CaptureFixture[str]
):
    builds = 0

    def function(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return toy(inputs) if builds > 1 else spoiled(np.nan, 8)(inputs)

    def built(*_: Any) -> Built:
        nonlocal builds
        builds += 1
        return Built(plan_bytes(profiles(BATCHES, LENGTHS, SPECS)), b"timings")

    assert plan("--form", "half", function=spoiled(np.nan, 8)) == 1  # asked for by name it is not replaced
    capsys.readouterr()
    assert plan(function=function, build=built) == 0
    assert builds == 2
    assert "the plan of all in half fails the gate" in capsys.readouterr().out
    (found,) = plans_of(open_bundle(small_bundle))
    assert stale(found.plan, open_bundle(small_bundle)) is None


def test_hints_are_built_from_fp32(plan: Run, small_bundle: Path):
    """By a builder that lowers types itself."""
    seen: list[tuple[str, str]] = []

    def built(_: Any, onnx: Path, *rest: Any) -> Built:
        seen.append((onnx.name, rest[2].precision))
        return Built(plan_bytes(profiles(BATCHES, LENGTHS, SPECS)), b"timings")

    assert plan("--form", "hints", build=built, typed=False) == 0
    assert seen == [("fp32.onnx", "fp16")]
    bundle = open_bundle(small_bundle)
    (found,) = plans_of(bundle)
    assert (found.plan.precision, found.plan.onnx) == ("fp16", "graphs/model/fp32.onnx")
    assert stale(found.plan, bundle) is None
    assert list(bundle.manifest.graphs["model"].onnx) == ["fp32"]


def test_a_batch_that_the_gpu_has_no_room_for_is_left_out_and_said(
    plan: Run, small_bundle: Path, capsys: pytest.CaptureFixture[str]
):
    assert plan(device=Device(200_000)) == 0
    assert "no room for batches of 8, at most 4 rows run at once" in capsys.readouterr().err
    (found,) = plans_of(open_bundle(small_bundle))
    assert found.plan.latencies_us == ()
    figures = json.loads((small_bundle / "parity.json").read_text())["plans"]
    assert [one["buckets"] for one in figures.values()] == [4]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device": Device(1000)}, "sm_89-trt10.13.0-fp16.plan was built and does not run here: "),
        ({"content": b"broken"}, "does not load sm_89-trt10.13.0-fp16.plan: [engine.cpp] Serialization assertion"),
    ],
)
def test_a_plan_that_does_not_run_is_one_sentence(
    plan: Run, small_bundle: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], sentence: str
):
    before = content(small_bundle)
    assert plan(**options) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.endswith("; try another --precision, or fewer --batches\n")
    assert content(small_bundle) == before


def test_where_the_reference_fails_the_plan_is_not_blamed(
    plan: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(self: OnnxRuntimeEngine, bucket: Bucket, slot: int = 0) -> None:
        raise EngineError(f"no kernel at {bucket.length}")

    monkeypatch.setattr(OnnxRuntimeEngine, "start", fail)
    assert plan("--precision", "fp32") == 2
    assert capsys.readouterr().err == (
        "error: the bundle's own graph, which is compared with, fails on the CPU at a row of 8: no kernel at 8; "
        "try other --lengths or fewer --batches, or export the model anew\n"
    )


def test_a_plan_that_fails_leaves_the_one_before_it_as_it_was(plan: Run, small_bundle: Path):
    """Of the same name, in a copy of the bundle that begins as links."""
    assert plan() == 0
    before = content(small_bundle)
    made = Built(plan_bytes(profiles(BATCHES, LENGTHS, SPECS), scratch=2000), b"other timings")
    assert plan("--form", "half", function=spoiled(np.nan, 8), build=lambda *_: made) == 1
    assert content(small_bundle) == before


def test_a_signature_is_removed_with_what_it_signed(plan: Run, small_bundle: Path):
    (small_bundle / SIGNATURE).write_text("signed")
    assert plan() == 0
    assert not (small_bundle / SIGNATURE).exists()


def test_a_damaged_bundle_gets_no_plan(plan: Run, small_bundle: Path, capsys: pytest.CaptureFixture[str]):
    file = small_bundle / "tokenizer.json"
    whole = file.read_bytes()
    file.write_bytes(whole.swapcase())
    assert plan() == 2
    assert "tokenizer.json does not match the SHA-256 in the manifest" in capsys.readouterr().err
    file.write_bytes(whole)  # for the fixture


@pytest.mark.parametrize("typed", [True, False])
def test_whether_profiles_may_be_shared_is_noted(plan: Run, small_bundle: Path, typed: bool):
    made = plan_bytes(profile_a_length(BATCHES, LENGTHS, SPECS))
    assert plan("--profiles", "length", "--precision", "fp32", typed=typed, content=made) == 0
    (found,) = plans_of(open_bundle(small_bundle))
    assert found.plan.profile_sharing is not typed


def test_a_plan_of_several_gpus_is_built_for_one_at_a_time():
    recipe = PlanRecipe("fp16", compute_capabilities=((8, 6), (12, 0)))
    assert _for_target(recipe, Target("12.0")).compute_capabilities == ((12, 0),)
    assert _for_target(PlanRecipe("fp16"), Target("12.0")) == PlanRecipe("fp16")


def test_what_pods_build_one_after_the_other_is_taken(plan: Run, small_bundle: Path):
    """Each adds to the timings that it finds, and the third builds the first one's plan again."""
    given: list[bytes] = []
    for number, gpu in enumerate((("8.9", "NVIDIA L4"), ("8.6", "NVIDIA A40"), ("8.9", "NVIDIA L4"))):
        before = open_bundle(small_bundle)
        made = Built(plan_bytes(profiles(BATCHES, LENGTHS, SPECS)), b"timings %d" % number)

        def build(*arguments: Any, made: Built = made) -> Built:
            given.append(arguments[-1])
            return made

        assert plan(gpu=gpu, build=build) == 0
        new = new_files(before, open_bundle(small_bundle))
        stem = f"graphs/model/plans/sm_{gpu[0].replace('.', '')}-trt10.13.0-fp16"
        assert {f"{stem}.json", "graphs/model/plans/timing.cache"} <= set(new)
    assert len(plans_of(open_bundle(small_bundle))) == 2
    assert given == [b"", b"timings 0", b"timings 1"]
