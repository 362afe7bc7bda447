"""Stage 7: plans, built by TensorRT from the bundle's ONNX graphs and kept only if they answer like them.

    graphs/<name>/fp16.onnx, fp16.bin             the graph in the plan's precision, made first where it is missing
    graphs/<name>/plans/sm_89-trt10.13.0-fp16.*   the plan and its sidecar (engine/plans/sidecar.py)
    graphs/<name>/plans/timing.cache              the builder's measurements; the next build for this GPU is faster

A plan of TensorRT runs through the worker's own engine at every bucket before it is kept. One of TensorRT-RTX is built
without a GPU, so that it has been parsed, optimised and serialised, but has not run.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.bucket import Bucket
from engine.bundle import SIGNATURE, Bundle, Graph, open_bundle, write_manifest
from engine.errors import EngineError
from engine.plans.sidecar import TIMING_CACHE, Plan, PlanFile, Profile, source_digest, write_sidecar
from engine.sizes import readable
from export.bundle_folder import changed_bundle_folder, finish_exchange
from export.command import interrupts
from export.command.progress import stage
from export.errors import ParityFailed, Refused
from export.plans.builder import Builder, Target, check_types, open_builder
from export.plans.gate import gate
from export.plans.network import build_plan, is_strongly_typed
from export.plans.precision import add_precision, note_parity, replaced, told
from export.plans.recipe import PlanRecipe
from export.plans.times import latency_us
from export.precision.half import TYPES


def add_plans(path: Path, recipe: PlanRecipe) -> list[str]:
    """Add plans to the bundle at `path`; their file names. It is changed as a whole or not at all, and then unsigned.

    Raises Refused, ParityFailed or BundleError.
    """
    finish_exchange(path)
    bundle = open_bundle(path)
    recipe = recipe.of(bundle.manifest.precisions)
    recipe.check(bundle.manifest)
    builder = open_builder(recipe)
    with stage("verify"):
        bundle.verify()
    with changed_bundle_folder(path) as folder:
        written = write_plans(folder, recipe, builder)
        (folder / SIGNATURE).unlink(missing_ok=True)  # of the bundle as it was
        interrupts.ignore()
        return written


def write_plans(folder: Path, recipe: PlanRecipe, builder: Builder | None = None) -> list[str]:
    """Add plans to the bundle in `folder`, in place, and return their file names. Raises Refused or ParityFailed."""
    manifest = open_bundle(folder).manifest
    recipe = recipe.of(manifest.precisions)
    recipe.check(manifest)
    builder = builder or open_builder(recipe)
    check_types(recipe, builder.trt)  # again: when the builder was opened, an export may not have known its precision
    written: list[str] = []
    for name in manifest.graphs:
        rounding = builder.runtime != "tensorrt"
        form = add_precision(folder, name, recipe.precision, recipe.form, rounding=rounding)
        try:
            written += [_add_plan(folder, name, recipe, builder, target) for target in builder.targets]
        except ParityFailed:
            if form != "half" or recipe.form:
                raise
            add_precision(folder, name, recipe.precision, "sums", because="the plan of all in half fails the gate")
            written += [_add_plan(folder, name, recipe, builder, target) for target in builder.targets]
    return written


def _add_plan(folder: Path, name: str, recipe: PlanRecipe, builder: Builder, target: Target) -> str:
    bundle = open_bundle(folder)
    graph = bundle.manifest.graphs[name]
    own = recipe.precision in (*TYPES, "int8") and recipe.form != "hints"
    onnx = graph.onnx[recipe.precision if own else "fp32"]
    ladder = recipe.ladder(bundle.manifest, name)
    profiles = recipe.shapes(ladder)
    plans = folder / "graphs" / name / "plans"
    with stage("plan") as note:
        cache = plans / TIMING_CACHE
        built = build_plan(
            builder.trt,
            folder / onnx,
            graph.inputs,
            [shapes for _, shapes in profiles],
            _for_target(recipe, target),
            cache.read_bytes() if cache.exists() else b"",
        )
        plan = Plan(
            runtime=builder.runtime,
            tensorrt_version=builder.trt.__version__,
            compute_capability=target.compute_capability,
            hardware_compatibility=recipe.hardware_compatibility,
            version_compatible=recipe.version_compatible,
            precision=recipe.precision,
            gpu_name=target.gpu_name,
            driver_version=target.driver_version,
            cuda_version=target.cuda_version,
            batches=ladder.batches,
            lengths=ladder.lengths,
            max_tokens=ladder.max_tokens,
            profiles=tuple(Profile(buckets, _shapes(graph, three)) for buckets, three in profiles),
            optimization_level=recipe.optimization_level,
            workspace_bytes=(recipe.workspace_mib or 0) << 20,
            size=len(built.content),
            sha256=hashlib.sha256(built.content).hexdigest(),
            onnx=onnx,
            onnx_sha256=source_digest(bundle.manifest.files, onnx),
            profile_sharing=recipe.profiles == "length" and not is_strongly_typed(builder.trt),
        )
        plans.mkdir(exist_ok=True)
        path = replaced(plans / f"{plan.stem}.plan", built.content)
        (plans / f"{plan.stem}.json").unlink(missing_ok=True)  # it may be a link to another bundle's
        write_sidecar(plan, plans)
        if built.timing_cache:
            replaced(cache, built.timing_cache)
        write_manifest(folder, bundle.manifest)
        note(f"{plan.stem}, {len(profiles)} profiles, {readable(plan.size)}")
        if recipe.layers:
            note("{} kernels, {} of them fused attention".format(*built.kernels))
    if builder.runtime == "tensorrt":
        with stage("parity") as note:
            figures, latencies = _check_on_gpu(open_bundle(folder), name, PlanFile(plan, path))
            if len(latencies) == len(ladder):
                write_sidecar(replace(plan, latencies_us=tuple(latencies)), plans)
            note_parity(folder, "plans", path.relative_to(folder).as_posix(), figures)
            note(f"{len(latencies)} buckets, {told(figures)}")
    return path.relative_to(folder).as_posix()


def _for_target(recipe: PlanRecipe, target: Target) -> PlanRecipe:
    """`recipe` for one of the GPUs that it names, where it names any."""
    major, minor = map(int, target.compute_capability.split("."))
    return replace(recipe, compute_capabilities=((major, minor),)) if recipe.compute_capabilities else recipe


def _shapes(graph: Graph, three: tuple[Bucket, Bucket, Bucket]) -> Mapping[str, Any]:
    return {spec.name: tuple(spec.shape_at(bucket) for bucket in three) for spec in graph.inputs}


def _check_on_gpu(bundle: Bundle, name: str, plan: PlanFile) -> tuple[dict[str, Any], list[int]]:
    """Run the plan as the worker will: the gate's figures, and the microseconds of every bucket.

    A bucket that this GPU has no room for is left out, as it will be in the worker. Imported here: without a driver the
    backend cannot even be imported. Raises Refused when the plan does not run.
    """
    from engine.backends.tensorrt import TensorRtEngine

    latencies: dict[Bucket, int] = {}
    try:
        engine = TensorRtEngine(bundle, name, plan)
        try:
            engine.warm_up()
            for sentence in engine.notes:
                print(f"    {sentence}", file=sys.stderr, flush=True)
            buckets = [bucket for bucket in plan.plan.ladder if bucket in engine.buckets]
            figures = gate(
                bundle,
                name,
                engine,
                buckets,
                plan.plan.precision,
                ran=lambda bucket: latencies.update({bucket: latency_us(engine, bucket)}),
            )
            return figures, [latencies[bucket] for bucket in buckets]
        finally:
            engine.close()
    except EngineError as error:
        raise Refused(
            f"{plan.name} was built and does not run here: {error}; try another --precision, or fewer --batches"
        ) from error
