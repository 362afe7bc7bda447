"""Which buckets and optimization profiles a plan gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.bucket import Bucket, Ladder
from engine.bundle import Graph, Manifest, open_bundle
from engine.tensors import TensorSpec
from export.errors import Refused
from export.plan_recipe import NO_LIBRARY_TACTICS, PlanRecipe, plan_command

TOKENS = Graph((TensorSpec("input_ids", "int32", ("batch", "length")),), (), {})
PIXELS = Graph((TensorSpec("pixel_values", "uint8", ("batch", 3, 8, 8)),), (), {})


def test_hints_that_nothing_may_follow_are_refused():
    with pytest.raises(Refused, match="--form hints and --pin-types exclude each other: of fp32.onnx every layer"):
        plan_command(["bundle", "--form", "hints", "--pin-types"])
    with pytest.raises(Refused, match="--form is for plans in fp16 and bf16, not in tf32"):
        plan_command(["bundle", "--form", "half", "--precision", "tf32"])
    assert plan_command(["bundle", "--form", "sums", "--pin-types"])[1].form == "sums"


def manifest(max_length: int) -> Manifest:
    graphs = {"tokens": TOKENS, "pixels": PIXELS}
    return Manifest("toy", None, "Toy", "feature-extraction", {"max_length": max_length}, "fp32", graphs, {})


@pytest.mark.parametrize(
    ("max_length", "lengths"),
    [
        (512, (16, 32, 64, 128, 256, 512)),
        (256, (16, 32, 64, 128, 256)),
        (384, (16, 32, 64, 128, 256, 384)),
        (514, (16, 32, 64, 128, 256, 512, 514)),
        (16, (16,)),
        (10, (10,)),
    ],
)
def test_lengths_are_powers_of_two_up_to_the_models_own(max_length: int, lengths: tuple[int, ...]):
    found = PlanRecipe().ladder(manifest(max_length), "tokens")
    assert (found.batches, found.lengths) == ((1, 4, 8, 16, 32), lengths)


def test_what_has_no_length_has_buckets_of_length_one():
    assert list(PlanRecipe(batches=(1, 8)).ladder(manifest(512), "pixels")) == [Bucket(1, 1), Bucket(8, 1)]


def test_lengths_of_ones_own():
    _, recipe = plan_command(["B", "--lengths", "max, 64,16,64", "--batches", "8,1"])
    assert list(recipe.ladder(manifest(128), "tokens")) == list(Ladder((1, 8), (16, 64, 128)))
    with pytest.raises(Refused, match="holds 64, and toy takes at most 32"):
        recipe.ladder(manifest(32), "tokens")


def test_a_profile_for_each_bucket_or_for_each_length():
    ladder = Ladder((1, 8), (16, 32))
    exact = PlanRecipe().shapes(ladder)
    assert [buckets for buckets, _ in exact] == [(bucket,) for bucket in ladder]
    assert all(shapes == buckets * 3 for buckets, shapes in exact)
    by_length = PlanRecipe(profiles="length").shapes(ladder)
    assert by_length[1] == ((Bucket(1, 32), Bucket(8, 32)), (Bucket(1, 32), Bucket(8, 32), Bucket(8, 32)))


def test_library_tactics_are_left_out_by_option_or_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(NO_LIBRARY_TACTICS, raising=False)
    assert plan_command(["B"])[1].library_tactics
    assert not plan_command(["B", "--no-library-tactics"])[1].library_tactics
    monkeypatch.setenv(NO_LIBRARY_TACTICS, "1")
    assert not plan_command(["B"])[1].library_tactics


def test_the_ladder_of_a_real_bundle(small_bundle: Path):
    found = open_bundle(small_bundle).manifest
    assert PlanRecipe().ladder(found, "model").lengths == (16, 32)


def test_without_a_precision_plans_have_the_bundles():
    assert plan_command(["B"])[1].of({"cpu": "int8", "tensorrt": "bf16"}).precision == "bf16"
    assert plan_command(["B"])[1].of({"cpu": "int8"}).precision == "fp16"
    assert plan_command(["B", "--precision", "fp32"])[1].of({"tensorrt": "bf16"}).precision == "fp32"
