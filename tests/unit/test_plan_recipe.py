"""Which buckets and optimization profiles a plan gets, and what its builder is told."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engine.bucket import Bucket, Ladder
from engine.bundle import Graph, Manifest, open_bundle
from engine.tensors import TensorSpec
from export.errors import Refused
from export.plans.network import Built, _set_options, _set_timing_cache, build_plan
from export.plans.recipe import NO_LIBRARY_TACTICS, PlanRecipe, plan_command

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


def test_batches_that_no_worker_forms_have_no_buckets_unless_lengths_are_named():
    """Of rows of 8,192 tokens; up to 1,024 there are none of that kind, and batches are held to nothing."""
    recipe = PlanRecipe()
    found = recipe.ladder(manifest(8192), "tokens")
    whole = Ladder(found.batches, found.lengths)
    assert set(whole) - set(found) == {(32, 2048), (16, 4096), (32, 4096), (8, 8192), (16, 8192), (32, 8192)}
    assert recipe.ladder(manifest(1024), "tokens").max_tokens == 0
    assert [shapes[0] for _, shapes in recipe.shapes(found)] == list(found)
    rows = PlanRecipe(profiles="length").shapes(found)
    assert [bucket for row, _ in rows for bucket in row] == sorted(found, key=lambda bucket: (bucket.length, bucket))
    assert rows[-1][1] == (Bucket(1, 8192), Bucket(4, 8192), Bucket(4, 8192))
    named = PlanRecipe(lengths=(16, 0)).ladder(manifest(8192), "tokens")
    assert Bucket(32, 8192) in named


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


class Config(SimpleNamespace):
    """A builder's, of which TF32 is on unless cleared."""

    def __init__(self) -> None:
        super().__init__(flags={"TF32"}, previews=[], pools={}, sources=None)
        self.set_flag, self.clear_flag = self.flags.add, self.flags.discard
        self.set_memory_pool_limit = self.pools.__setitem__

    def set_preview_feature(self, feature: str, on: bool) -> None:
        self.previews.append((feature, on))

    def set_tactic_sources(self, sources: int) -> None:
        self.sources = sources


def tensorrt(version: int) -> SimpleNamespace:
    """What options are set by, in TensorRT `version`."""
    flags = ("TF32", "FP16", "BF16", "INT8", "VERSION_COMPATIBLE", "PREFER_PRECISION_CONSTRAINTS")
    return SimpleNamespace(
        __version__=f"{version}.0.1",
        float32="float32",
        BuilderFlag=SimpleNamespace(**{flag: flag for flag in flags}),
        HardwareCompatibilityLevel=SimpleNamespace(__members__={"NONE": 0, "AMPERE_PLUS": 1}),
        LayerType=SimpleNamespace(CONSTANT="constant", SHAPE="shape", CAST="cast"),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        NetworkDefinitionCreationFlag=SimpleNamespace(
            **{"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1} if version >= 10 else {"EXPLICIT_BATCH": 0}
        ),
        PreviewFeature=SimpleNamespace(PROFILE_SHARING_0806="sharing"),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
        TacticSource=SimpleNamespace(CUBLAS=0, CUDNN=2, EDGE_MASK_CONVOLUTIONS=3, JIT_CONVOLUTIONS=4),
    )


def told(recipe: PlanRecipe, version: int, *layers: Any) -> dict[str, Any]:
    """What a builder's configuration is after `recipe`, by TensorRT `version`."""
    config = Config()
    _set_options(
        tensorrt(version), config, SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__), recipe
    )
    return vars(config)


@pytest.mark.parametrize(
    ("recipe", "version", "what", "value"),
    [
        (PlanRecipe("fp32"), 10, "flags", set()),
        (PlanRecipe("tf32"), 10, "flags", {"TF32"}),
        (PlanRecipe("fp16"), 10, "flags", set()),  # the graph's types are the network's
        (PlanRecipe("fp16"), 8, "flags", {"FP16"}),
        (PlanRecipe("fp16", pin_types=True), 8, "flags", {"FP16", "PREFER_PRECISION_CONSTRAINTS"}),
        (PlanRecipe("int8", pin_types=True), 8, "flags", {"INT8"}),
        (PlanRecipe("fp32", version_compatible=True), 10, "flags", {"VERSION_COMPATIBLE"}),
        (PlanRecipe("fp32", hardware_compatibility="ampere-plus"), 10, "hardware_compatibility_level", 1),
        (PlanRecipe("fp32", profiles="length"), 8, "previews", [("sharing", True)]),
        (PlanRecipe("fp32", profiles="length"), 10, "previews", []),
        (PlanRecipe("fp32", optimization_level=5), 10, "builder_optimization_level", 5),
        (PlanRecipe("fp32", workspace_mib=3), 10, "pools", {"workspace": 3 << 20}),
        (PlanRecipe("fp32", library_tactics=False), 10, "sources", 1 << 3 | 1 << 4),
        (PlanRecipe("fp32", layers=True), 10, "profiling_verbosity", "detailed"),
    ],
)
def test_the_builder_is_told_what_the_recipe_says(recipe: PlanRecipe, version: int, what: str, value: Any):
    assert told(recipe, version)[what] == value


def test_what_is_pinned_is_what_is_fp32_and_has_a_precision():
    def layer(kind: str, dtype: str) -> Any:
        output = SimpleNamespace(dtype=dtype)
        made = SimpleNamespace(type=kind, precision="", types={}, num_outputs=1, get_output=lambda number: output)
        made.set_output_type = made.types.__setitem__
        return made

    layers = [layer("product", "float32"), layer("product", "float16"), layer("constant", "float32")]
    told(PlanRecipe("fp16", pin_types=True), 8, *layers)
    assert [(one.precision, one.types) for one in layers] == [("float32", {0: "float32"}), ("", {}), ("", {})]


def test_timings_of_another_gpu_are_not_forced_on_the_builder():
    def take(cache: bytes, ignore_mismatch: bool) -> bool:
        return ignore_mismatch or cache != b"of another GPU"

    config = SimpleNamespace(create_timing_cache=lambda content: content, set_timing_cache=take)
    assert _set_timing_cache(config, b"of another GPU") == b""
    assert _set_timing_cache(config, b"of this one") == b"of this one"


@pytest.mark.parametrize(("version", "network", "flags"), [(8, 1 << 0, {"FP16"}), (10, 1 << 1, set())])
def test_a_build_by_plain_tensorrt(tmp_path: Path, version: int, network: int, flags: set[str]):
    """Whose builder needs a GPU: what it is given, and what is taken of it."""
    config, trt = Config(), ModuleType("tensorrt")
    given: dict[str, Any] = {"profiles": []}

    def make_timing_cache(content: bytes) -> SimpleNamespace:
        return SimpleNamespace(content=content, serialize=lambda: content + b", and this build's")

    def set_timing_cache(cache: Any, ignore_mismatch: bool) -> bool:
        config.get_timing_cache = lambda: cache
        return True

    def add_profile(profile: dict[str, Any]) -> int:
        given["profiles"].append(profile)
        return len(given["profiles"]) - 1

    class Profile(dict[str, Any]):
        def set_shape(self, name: str, *shapes: Any) -> None:
            self[name] = shapes

    class Logger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    def build(made: Any, config: Any) -> bytes:
        given["logger"].log(3, "Name: fused_mha_1, LayerType: Myelin")
        return b"plan"

    def builder(logger: Any) -> SimpleNamespace:
        given["logger"] = logger
        return SimpleNamespace(
            create_network=lambda flags: given.update(network=flags) or SimpleNamespace(num_layers=0),
            create_builder_config=lambda: config,
            create_optimization_profile=Profile,
            build_serialized_network=build,
        )

    config.create_timing_cache, config.set_timing_cache = make_timing_cache, set_timing_cache
    config.add_optimization_profile = add_profile
    onnx, shapes = tmp_path / "fp16.onnx", (Bucket(1, 16), Bucket(4, 16), Bucket(8, 16))
    parser = SimpleNamespace(parse_from_file=lambda path: path == str(onnx))
    vars(trt).update(vars(tensorrt(version)), ILogger=Logger, Builder=builder, OnnxParser=lambda *_: parser)
    for _ in range(2):  # nothing of the first is told of the second
        built = build_plan(trt, onnx, TOKENS.inputs, [shapes], PlanRecipe("fp16"), b"timings of before")
        assert built == Built(b"plan", b"timings of before, and this build's", (1, 1))
    assert given["profiles"] == [{"input_ids": ((1, 16), (4, 16), (8, 16))}] * 2
    assert given["network"] == network
    assert config.flags == flags
