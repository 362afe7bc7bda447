"""From an ONNX file to a serialized plan, through the builder of TensorRT 8.6, of 10, or of TensorRT-RTX.

The names used are those that exist in all of them; what only some have is asked for by `getattr` (`tests/e2e/
test_tensorrt_names.py` holds every name against the real bindings). Rule: no decision here, and no file but the ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.bucket import Bucket
from engine.tensors import TensorSpec
from export.command import interrupts
from export.errors import Refused, Unavailable
from export.plans.messages import deferred_interrupt, errors_of, kernels_of, logger_of, monitor_of
from export.plans.recipe import PlanRecipe

_FLAGS = {"fp16": "FP16", "bf16": "BF16", "int8": "INT8"}
"""Builder flags of a network whose types are only hints, which is every network before TensorRT 10. builder.py refuses
bf16 where there is no such flag."""
_DEFAULT_LEVEL = 3  # TensorRT's own, and PlanRecipe's


@dataclass(frozen=True)
class Built:
    """What a build returns."""

    content: bytes
    """The plan."""
    timing_cache: bytes | None
    kernels: tuple[int, int] = (0, 0)
    """All, and those of fused attention; (0, 0) where the builder was not asked."""


def build_plan(
    trt: Any,
    onnx: Path,
    inputs: Sequence[TensorSpec],
    profiles: Sequence[tuple[Bucket, Bucket, Bucket]],
    recipe: PlanRecipe,
    timing_cache: bytes = b"",
) -> Built:
    """Parse `onnx` and build it for `profiles`, one optimization profile each: (smallest, best, largest) bucket.

    The ONNX has the types of `recipe.precision` already, and the scales of int8, so that nothing is calibrated. Of
    `recipe` its batches, lengths and form are not looked at. Without a driver, `trt` must be TensorRT-RTX: the builder
    of plain TensorRT crashes the process. Raises Refused with the parser's or the builder's own words.
    """
    logger = logger_of(trt)
    logger.clear()
    with deferred_interrupt():
        return _build(trt, logger, onnx, inputs, profiles, recipe, timing_cache)


def _build(
    trt: Any,
    logger: Any,
    onnx: Path,
    inputs: Sequence[TensorSpec],
    profiles: Sequence[tuple[Bucket, Bucket, Bucket]],
    recipe: PlanRecipe,
    timing_cache: bytes,
) -> Built:
    builder = _start(trt, logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if _needs_native_norms(trt, onnx, recipe):
        parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)
    if not parser.parse_from_file(str(onnx)):
        raise Refused(_parser_sentence(trt, parser, onnx))
    config = builder.create_builder_config()
    _set_options(trt, config, network, recipe)
    for shapes in profiles:
        _add_profile(builder, config, inputs, shapes)
    cache = _set_timing_cache(config, timing_cache) if _has_timing_cache(recipe) else None
    monitor = monitor_of(trt)  # referenced until this function returns
    if monitor is not None:
        config.progress_monitor = monitor
    interrupts.check()  # for what came since parsing began; before TensorRT 10 nothing ends a build
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Refused(
            f"TensorRT {trt.__version__} cannot build {onnx.name} in {recipe.precision}: "
            f"{errors_of(logger) or 'the builder gave no reason'}; {_fix(recipe)}"
        )
    if cache is not None:
        cache = bytes(memoryview(config.get_timing_cache().serialize()))
    return Built(bytes(memoryview(plan)), cache, kernels_of(logger))


def _fix(recipe: PlanRecipe) -> str:
    lean = "--version-compatible needs libnvinfer_lean, of the package tensorrt-lean-cu11-libs; else "
    return f"{lean * recipe.version_compatible}try another --precision, or other --batches"


def _start(trt: Any, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError as error:  # what the bindings make of a builder that is none
        said = errors_of(logger) or " ".join(logger.warning.split()) or str(error)
        raise Unavailable(f"TensorRT {trt.__version__} does not start ({said}); update the NVIDIA driver") from error


def is_strongly_typed(trt: Any) -> bool:
    """Whether networks of `trt` run the types of the ONNX as they are: from TensorRT 10 on."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def hardware_levels(trt: Any) -> Mapping[str, Any]:
    """The levels of hardware compatibility that `trt` has, by our names."""
    members = trt.HardwareCompatibilityLevel.__members__
    return {name.lower().replace("_", "-"): level for name, level in members.items()}


def targets_of(trt: Any) -> Mapping[tuple[int, int], Any]:
    """The compute capabilities that TensorRT-RTX builds for; plain TensorRT has no such list."""
    members = getattr(trt, "ComputeCapability").__members__  # noqa: B009 (not in plain TensorRT)
    numbers = {name.removeprefix("SM"): target for name, target in members.items() if name.startswith("SM")}
    return {(int(number[:-1]), int(number[-1])): target for number, target in numbers.items()}


def _network_flags(trt: Any) -> int:
    if is_strongly_typed(trt):
        return 1 << int(getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"))  # noqa: B009 (not in 8.6)
    return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


def _needs_native_norms(trt: Any, onnx: Path, recipe: PlanRecipe) -> bool:
    """Whether the parser must be kept from making InstanceNormalization a plugin.

    NvOnnxParser.h of 8.6: "This flag is required when building version-compatible or hardware-compatible engines." From
    10 on it is always set.
    """
    compatible = recipe.version_compatible or recipe.hardware_compatibility != "none"
    if is_strongly_typed(trt) or not compatible:
        return False
    return any(node.op_type == "InstanceNormalization" for node in _nodes(onnx))


def _nodes(onnx: Path) -> Sequence[Any]:
    from onnx import load

    nodes: Sequence[Any] = load(onnx, load_external_data=False).graph.node
    return nodes


def _set_options(trt: Any, config: Any, network: Any, recipe: PlanRecipe) -> None:
    if recipe.precision == "tf32":
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # it is on unless cleared
    if not is_strongly_typed(trt):
        _set_hints(trt, config, network, recipe)
        if recipe.profiles == "length":  # several execution contexts use one profile: from 10 on they always may
            config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    if recipe.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if recipe.hardware_compatibility != "none":
        config.hardware_compatibility_level = hardware_levels(trt)[recipe.hardware_compatibility]
    if recipe.optimization_level != _DEFAULT_LEVEL:
        config.builder_optimization_level = recipe.optimization_level
    if recipe.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_mib << 20)
    if not recipe.library_tactics:
        sources = (trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS)
        config.set_tactic_sources(sum(1 << int(source) for source in sources))
    if recipe.layers:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if recipe.compute_capabilities:
        _set_targets(trt, config, recipe.compute_capabilities)


def _set_hints(trt: Any, config: Any, network: Any, recipe: PlanRecipe) -> None:
    """Let a network of 8.x use half precision; `pin_types` makes the fp32 of its layers more than a hint."""
    name = _FLAGS.get(recipe.precision)
    if name is None:
        return
    config.set_flag(getattr(trt.BuilderFlag, name))
    if not recipe.pin_types or recipe.precision == "int8":  # there Q and DQ say what is fp32
        return
    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    loose = (trt.LayerType.CONSTANT, trt.LayerType.SHAPE, trt.LayerType.CAST)  # have no precision to hold
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(number) for number in range(layer.num_outputs)]
        if layer.type not in loose and all(output.dtype == trt.float32 for output in outputs):
            layer.precision = trt.float32
            for number in range(layer.num_outputs):
                layer.set_output_type(number, trt.float32)


def _set_targets(trt: Any, config: Any, capabilities: Sequence[tuple[int, int]]) -> None:
    """The architectures that a plan of TensorRT-RTX is for."""
    known = targets_of(trt)
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(known[capability], index)


def _add_profile(
    builder: Any, config: Any, inputs: Sequence[TensorSpec], shapes: tuple[Bucket, Bucket, Bucket]
) -> None:
    profile = builder.create_optimization_profile()
    for spec in inputs:
        profile.set_shape(spec.name, *(spec.shape_at(bucket) for bucket in shapes))
    if config.add_optimization_profile(profile) < 0:
        raise Refused(
            f"the builder takes no optimization profile from {shapes[0]} to {shapes[-1]}; "
            "give other --batches or --lengths"
        )


def _has_timing_cache(recipe: PlanRecipe) -> bool:
    """TensorRT-RTX measures nothing while it builds."""
    return not recipe.compute_capabilities


def _set_timing_cache(config: Any, content: bytes) -> bytes:
    """Use `content`, or nothing where it comes from another GPU or version; returns what is used."""
    for candidate in (content, b""):
        cache = config.create_timing_cache(candidate)
        if cache is not None and config.set_timing_cache(cache, False):
            return candidate
    return b""


def _parser_sentence(trt: Any, parser: Any, onnx: Path) -> str:
    """The parser's errors, with the node's name, which TensorRT before 10 does not tell."""
    nodes = _nodes(onnx)
    found = []
    for index in range(min(parser.num_errors, 3)):
        parser_error = parser.get_error(index)
        at = parser_error.node()
        where = f"{nodes[at].op_type} {nodes[at].name}: " if 0 <= at < len(nodes) else ""
        found.append(f"{where}{' '.join(parser_error.desc().split())}")
    said = "; ".join(found) or errors_of(logger_of(trt)) or "the parser gave no reason"
    return f"TensorRT {trt.__version__} cannot read {onnx.name}: {said}; ONNX Runtime serves it without a plan"
