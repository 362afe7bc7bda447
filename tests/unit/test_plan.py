import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.bucket import Bucket
from engine.bundle import open_bundle, write_manifest
from engine.errors import BundleError
from engine.plans.sidecar import (
    HARDWARE_COMPATIBILITY,
    REBUILD,
    Machine,
    Profile,
    mismatch,
    plans_of,
    read_sidecar,
    sidecar_of,
    source_digest,
    stale,
    write_sidecar,
)
from tests.plans import add_plan, plan, profile_a_length

L4 = Machine("10.13.0.35", "8.9", "NVIDIA L4")


def test_a_sidecar_reads_as_it_was_written(tmp_path: Path):
    other = plan(profiles=profile_a_length(), version_compatible=True, profile_sharing=True, latencies_us=(1,) * 9)
    fewer = tuple(one for one in plan().profiles if one.buckets != (Bucket(8, 32),))
    for made in (plan(), other, plan(profiles=fewer, max_tokens=64, latencies_us=(1,) * 8)):
        path = write_sidecar(made, tmp_path)
        assert read_sidecar(path) == made
        assert write_sidecar(made, tmp_path).read_bytes() == path.read_bytes()


def test_a_field_of_a_newer_version_is_skipped(tmp_path: Path):
    path = write_sidecar(plan(), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "something_new": 1}))
    assert read_sidecar(path) == plan()


def test_a_field_that_an_older_version_had_not_is_what_it_was_then(tmp_path: Path):
    path = write_sidecar(plan(), tmp_path)
    fields = json.loads(path.read_text())
    newer = ("profile_sharing", "latencies_us", "max_tokens")
    path.write_text(json.dumps({name: fields[name] for name in fields if name not in newer}))
    assert read_sidecar(path) == plan(profile_sharing=False, latencies_us=())


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("runtime", "tensorrt_lean", "runtime is 'tensorrt_lean', not one of tensorrt, tensorrt_rtx"),
        ("precision", "fp8", "precision is 'fp8', not one of fp32, tf32, "),
        ("hardware_compatibility", "all", "hardware_compatibility is 'all', not one of none, "),
        ("compute_capability", "89", "compute_capability is '89', not 2 numbers with points between them"),
        ("tensorrt_version", "10.13", "tensorrt_version is '10.13', not 3 numbers with points between them"),
        ("tensorrt_version", 10, "tensorrt_version is 10"),
        ("batches", [4, 1], "batch sizes must be rising"),
        ("batches", [1, 4, 8, 16], "no profile serves Bucket(batch=16, length=8)"),
        ("lengths", [], "lengths must be rising"),
        ("profiles", [], "no profile serves"),
        ("profiles", [{"buckets": [[1, 8]]}], "'shapes'"),
        ("profiles", [{"buckets": [[1]], "shapes": {}}], "not enough values"),
        ("profiles", [{"buckets": [[1, 8]], "shapes": []}], "'items'"),
        ("profiles", [{"buckets": [[1, 8]], "shapes": {"x": [[1], [1]]}}], "min, opt and max"),
        ("profiles", [{"buckets": [[1, 8]], "shapes": {"x": [[float("inf")]] * 3}}], "infinity"),
        ("profiles", "none", ""),
        ("version_compatible", "yes", "version_compatible is 'yes'"),
        ("size", None, "size is None"),
        ("latencies_us", [1] * 8, "latencies_us has 8 entries, not one above 0 for each bucket"),
        ("latencies_us", [*[1] * 8, 0], "latencies_us has 9 entries, not one above 0 for each bucket"),
    ],
)
def test_a_wrong_value_is_refused_with_the_file_and_the_fix(tmp_path: Path, field: str, value: Any, why: str):
    path = write_sidecar(plan(), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(BundleError) as error:
        read_sidecar(path)
    assert str(error.value).startswith(f"{path} is not the sidecar of a plan (")
    assert why in str(error.value)
    assert REBUILD in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"null", b"[" * 100_000])
def test_what_is_no_sidecar_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(BundleError, match="not the sidecar of a plan"):
        read_sidecar(tmp_path / "x.json")


def test_a_sidecar_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(BundleError, match=rf"x.json cannot be read \(No such file or directory\); .*{REBUILD}"):
        read_sidecar(tmp_path / "x.json")


@pytest.mark.parametrize("best", [(1, 16), (1,), (1, 8, 8)])
def test_a_profile_out_of_order_is_refused(best: tuple[int, ...]):
    wrong = Profile((Bucket(1, 8),), {"input_ids": ((1, 8), best, (1, 8))})
    with pytest.raises(ValueError, match=r"profile of input_ids: \(1, 8\) <= .* <= \(1, 8\) does not hold"):
        plan(batches=(1,), lengths=(8,), profiles=(wrong,))


def test_the_smallest_profile_serves_a_bucket():
    both = (*profile_a_length(), *plan().profiles)
    made = plan(profiles=both)
    for bucket in made.ladder:
        assert made.profiles[made.profile_of(bucket)].buckets == (bucket,)
    with pytest.raises(ValueError, match="no profile serves"):
        made.profile_of(Bucket(2, 8))


@pytest.mark.parametrize(
    ("changes", "stem"),
    [
        ({}, "sm_89-trt10.13.0-fp16"),
        (
            {"compute_capability": "12.0", "runtime": "tensorrt_rtx", "tensorrt_version": "1.7.1.116"},
            "sm_120-rtx1.7.1-fp16",
        ),
        ({"hardware_compatibility": "ampere-plus", "precision": "tf32"}, "sm_89-trt10.13.0-tf32-ampere-plus"),
        ({"version_compatible": True}, "sm_89-trt10.13.0-fp16-vc"),
    ],
)
def test_the_file_name_says_what_it_is_for(changes: dict[str, Any], stem: str):
    assert plan(**changes).stem == stem


# Mismatches


@pytest.mark.parametrize(
    ("changes", "machine", "words"),
    [
        ({"tensorrt_version": "8.6.1"}, L4, ["TensorRT 8.6.1", "TensorRT 10.13.0.35 is installed"]),
        ({"tensorrt_version": "10.13.2.6"}, L4, ["10.13.2.6", "10.13.0.35"]),
        ({"tensorrt_version": "10.14.0.1", "version_compatible": True}, L4, ["10.14.0.1", "10.13.0.35"]),
        ({"tensorrt_version": "8.6.1", "version_compatible": True}, L4, ["8.6.1", "10.13.0.35"]),
        ({}, Machine("10.13.0.35", "9.0", "NVIDIA H100"), ["built for sm_89, and this GPU is NVIDIA H100 (sm_90)"]),
        ({}, Machine("10.13.0.35", "8.0"), ["sm_89", "this GPU is sm_80"]),
        ({"hardware_compatibility": "ampere-plus"}, Machine("10.13.0", "7.5", "Tesla T4"), ["ampere-plus", "sm_75"]),
        (
            {"hardware_compatibility": "same-compute-capability"},
            Machine("10.13.0", "8.6", "NVIDIA A10G"),
            ["sm_89", "same-compute-capability", "NVIDIA A10G (sm_86)"],
        ),
        (
            {"runtime": "tensorrt_rtx", "tensorrt_version": "1.7.1.116"},
            L4,
            ["TensorRT for RTX 1.7.1.116", "TensorRT 10.13.0.35 loads only its own"],
        ),
        ({}, Machine("1.7.1.116", "8.9", runtime="tensorrt_rtx"), ["plan of TensorRT 10.13.0.35", "RTX 1.7.1.116"]),
    ],
)
def test_a_mismatch_names_both_sides_and_the_fix(changes: dict[str, Any], machine: Machine, words: list[str]):
    sentence = mismatch(plan(**changes), machine)
    assert sentence is not None
    for word in (*words, REBUILD):
        assert word in sentence


def test_a_mismatch_is_one_sentence():
    assert mismatch(plan(tensorrt_version="8.6.1"), L4) == (
        "it was built with TensorRT 8.6.1, and TensorRT 10.13.0.35 is installed; build it again with the version that "
        "runs it, or with --version-compatible: `python -m export plan BUNDLE`"
    )
    assert mismatch(plan(runtime="tensorrt_rtx", tensorrt_version="1.7.1"), L4) == (
        "it is a plan of TensorRT for RTX 1.7.1, and TensorRT 10.13.0.35 loads only its own; "
        "build it again: `python -m export plan BUNDLE`"
    )


@pytest.mark.parametrize(
    ("changes", "machine"),
    [
        ({}, L4),
        ({}, Machine("10.13.0", "8.9")),  # a probe that knows fewer parts of the version
        ({"tensorrt_version": "10.13.0"}, L4),
        ({"tensorrt_version": "10.13.0.35.dev1"}, L4),
        ({"tensorrt_version": "10.13.0.40", "version_compatible": True}, L4),  # of a build alone
        ({}, Machine("10.13.0.35", "8.9", "NVIDIA L40S")),
        ({"hardware_compatibility": "ampere-plus"}, Machine("10.13.0.35", "9.0")),
        ({"hardware_compatibility": "ampere-plus", "compute_capability": "8.0"}, Machine("10.13.0.35", "8.6")),
        ({"hardware_compatibility": "ampere-plus", "compute_capability": "8.6"}, Machine("10.13.0.35", "8.0")),
        ({"hardware_compatibility": "same-compute-capability"}, Machine("10.13.0.35", "8.9", "NVIDIA L40S")),
        ({"version_compatible": True, "tensorrt_version": "10.9.0.34"}, L4),
        (
            {"version_compatible": True, "tensorrt_version": "10.9.0.34", "hardware_compatibility": "ampere-plus"},
            Machine("10.13.0.35", "9.0"),
        ),
    ],
)
def test_what_fits_is_let_in(changes: dict[str, Any], machine: Machine):
    assert mismatch(plan(**changes), machine) is None


def test_a_busy_machine_fails_no_test_by_examples():
    """Hypothesis would say that it makes them too slowly, or that one outlasted its deadline."""
    assert HealthCheck.too_slow in settings().suppress_health_check
    assert settings().deadline is None


versions = st.tuples(st.integers(8, 11), st.integers(0, 3), st.integers(0, 2)).map(lambda v: ".".join(map(str, v)))
capabilities = st.sampled_from(["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"])


@given(versions, versions, capabilities, capabilities, st.sampled_from(HARDWARE_COMPATIBILITY), st.booleans())
def test_nothing_fits_that_tensorrt_would_refuse(
    built: str, here: str, built_for: str, gpu: str, level: str, compatible: bool
):
    made = plan(
        tensorrt_version=built,
        compute_capability=built_for,
        hardware_compatibility=level,
        version_compatible=compatible,
    )
    fits = mismatch(made, Machine(here, gpu)) is None
    if not compatible:
        assert not fits or built == here
    if level != "ampere-plus":
        assert not fits or built_for == gpu
    if built == here and built_for == gpu:
        assert fits
    assert not fits or built.split(".")[0] == here.split(".")[0]
    assert mismatch(plan(runtime="tensorrt_rtx"), Machine(here, gpu)) is not None


# In a bundle


def test_the_plans_of_a_bundle(small_bundle: Path):
    assert plans_of(open_bundle(small_bundle)) == []
    one, two = add_plan(small_bundle), add_plan(small_bundle, b"other", precision="tf32")
    bundle = open_bundle(small_bundle)
    bundle.verify()
    assert [found.plan for found in plans_of(bundle)] == [one, two]
    assert [found.path.read_bytes() for found in plans_of(bundle)] == [b"plan", b"other"]
    assert plans_of(bundle, "text") == []
    assert stale(one, bundle) is None


def test_a_plan_of_other_bytes_than_its_sidecar_says(small_bundle: Path):
    add_plan(small_bundle, sha256="5" * 64)
    with pytest.raises(BundleError, match="not the plan that its sidecar describes"):
        plans_of(open_bundle(small_bundle))


def test_a_plan_without_its_sidecar(small_bundle: Path):
    made = add_plan(small_bundle)
    (small_bundle / "graphs/model/plans" / f"{made.stem}.json").unlink()
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    with pytest.raises(BundleError, match=r"fp16\.json"):
        plans_of(open_bundle(small_bundle))


def test_a_plan_of_another_graph_is_stale(small_bundle: Path):
    bundle = open_bundle(small_bundle)
    assert "built from another" in str(stale(plan(), bundle))
    assert "this bundle has not" in str(stale(plan(onnx="graphs/model/fp16.onnx"), bundle))


def test_the_source_digest_counts_the_weights():
    files = {
        "graphs/model/fp32.onnx": (1, "a"),
        "graphs/model/weights.bin": (1, "b"),
        "graphs/model/fp32.cpu.onnx": (1, "c"),
        "graphs/text/weights.bin": (1, "d"),
    }
    digest = source_digest(files, "graphs/model/fp32.onnx")
    assert digest == hashlib.sha256(b"fp32.onnx=a\nweights.bin=b\n").hexdigest(), "plans that are there would be stale"
    both = source_digest({**files, "graphs/model/fp32.bin": (1, "e")}, "graphs/model/fp32.onnx")
    assert both == hashlib.sha256(b"fp32.onnx=a\nfp32.bin=e\nweights.bin=b\n").hexdigest()
    for other, counts in (
        ("model/weights.bin", True),
        ("model/fp32.bin", True),
        ("model/fp16.bin", False),
        ("model/fp32.cpu.onnx", False),
        ("text/weights.bin", False),
    ):
        changed = {**files, f"graphs/{other}": (1, "e")}
        assert (source_digest(changed, "graphs/model/fp32.onnx") != digest) is counts


def test_a_sidecar_is_found_by_the_plans_name():
    assert sidecar_of("graphs/model/plans/a.plan") == "graphs/model/plans/a.json"
