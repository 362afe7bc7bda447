"""Stage 7: plans, built by TensorRT from the bundle's ONNX graphs and kept only if they answer like them.

    graphs/<name>/fp16.onnx, fp16.bin             the graph in the plan's precision, made first where it is missing
    graphs/<name>/plans/sm_89-trt10.13.0-fp16.*   the plan and its sidecar (engine/plan.py)
    graphs/<name>/plans/timing.cache              the builder's measurements; the next build for this GPU is faster

A plan of TensorRT runs through the worker's own engine at every bucket before it is kept. One of TensorRT-RTX is built
without a GPU, so that it has been parsed, optimised and serialised, but has not run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.bucket import Bucket, Ladder
from engine.bundle import Bundle, Graph, open_bundle, write_manifest
from engine.bundle_folder import changed_bundle_folder
from engine.plan import Plan, PlanFile, Profile, source_digest, write_sidecar
from export.errors import Refused
from export.half import TYPES, half
from export.plan_gate import gate, in_precision
from export.plan_recipe import PlanRecipe
from export.progress import megabytes, stage
from export.trt_builder import Builder, Target, open_builder
from export.trt_network import BuildOptions, build_plan, is_strongly_typed
from export.write import PARITY

TIMING_CACHE = "timing.cache"
_CPU_CHECKS = (Bucket(1, 16), Bucket(4, 64))
"""Buckets at which a graph in fp16 is checked on the CPU, which computes it slowly; the plan is checked at all."""


def add_plans(path: Path, recipe: PlanRecipe) -> list[str]:
    """Add plans to the bundle at `path`; their file names. The bundle is changed as a whole or not at all.

    Raises Refused, ParityFailed or BundleError.
    """
    bundle = open_bundle(path)
    recipe = recipe.of(bundle.manifest.precisions)
    builder = open_builder(recipe)
    with stage("verify"):
        bundle.verify()
    with changed_bundle_folder(path) as folder:
        return write_plans(folder, recipe, builder)


def write_plans(folder: Path, recipe: PlanRecipe, builder: Builder | None = None) -> list[str]:
    """Add plans to the bundle in `folder`, in place, and return their file names. Raises Refused or ParityFailed."""
    recipe = recipe.of(open_bundle(folder).manifest.precisions)
    builder = builder or open_builder(recipe)
    written: list[str] = []
    for name in open_bundle(folder).manifest.graphs:
        add_precision(folder, name, recipe.precision)
        written += [_add_plan(folder, name, recipe, builder, target) for target in builder.targets]
    return written


def add_precision(folder: Path, name: str, precision: str) -> None:
    """Make the graph of `precision` part of the bundle in `folder`, after a check on the CPU where that can run it."""
    manifest = open_bundle(folder).manifest
    graph = manifest.graphs[name]
    if precision == "int8" and precision not in graph.onnx:
        raise Refused("the bundle has no int8 graph for TensorRT; export the model with --precision tensorrt=int8")
    if precision not in TYPES or precision in graph.onnx:
        return
    with stage(precision) as note:
        path = half(folder / graph.onnx["fp32"], precision)
        onnx = path.relative_to(folder).as_posix()
        graph = replace(graph, onnx={**graph.onnx, precision: onnx})
        write_manifest(folder, replace(manifest, graphs={**manifest.graphs, name: graph}))
        note(megabytes(path.with_suffix(".bin").stat().st_size))
        if precision == "fp16":  # ONNX Runtime's CPU build has no bf16
            figures = _check_on_cpu(open_bundle(folder), name, precision)
            _note_parity(folder, "graphs", onnx, figures)
            note(_told(figures))


def _check_on_cpu(bundle: Bundle, name: str, precision: str) -> dict[str, Any]:
    from engine.backends.onnxruntime import OnnxRuntimeEngine

    engine = OnnxRuntimeEngine(in_precision(bundle, name, precision), name, max_batch=4)
    try:
        largest = engine.buckets.largest
        fitting = {Bucket(b.batch, min(b.length, largest.length)) for b in _CPU_CHECKS}
        return gate(bundle, name, engine, sorted(fitting), precision)
    finally:
        engine.close()


def _add_plan(folder: Path, name: str, recipe: PlanRecipe, builder: Builder, target: Target) -> str:
    bundle = open_bundle(folder)
    graph = bundle.manifest.graphs[name]
    onnx = graph.onnx[recipe.precision if recipe.precision in (*TYPES, "int8") else "fp32"]
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
            _options(recipe, target),
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
        path = _replaced(plans / f"{plan.stem}.plan", built.content)
        (plans / f"{plan.stem}.json").unlink(missing_ok=True)  # it may be a link to another bundle's
        write_sidecar(plan, plans)
        if built.timing_cache:
            _replaced(cache, built.timing_cache)
        write_manifest(folder, bundle.manifest)
        note(f"{plan.stem}, {len(profiles)} profiles, {megabytes(plan.size)}")
    if builder.runtime == "tensorrt":
        with stage("parity") as note:
            figures = _check_on_gpu(open_bundle(folder), name, PlanFile(plan, path), ladder)
            _note_parity(folder, "plans", path.relative_to(folder).as_posix(), figures)
            note(f"{len(ladder)} buckets, {_told(figures)}")
    return path.relative_to(folder).as_posix()


def _options(recipe: PlanRecipe, target: Target) -> BuildOptions:
    major, minor = target.compute_capability.split(".")
    return BuildOptions(
        precision=recipe.precision,
        hardware_compatibility=recipe.hardware_compatibility,
        version_compatible=recipe.version_compatible,
        optimization_level=recipe.optimization_level,
        workspace_mib=recipe.workspace_mib,
        library_tactics=recipe.library_tactics,
        pin_types=recipe.pin_types,
        share_profiles=recipe.profiles == "length",
        compute_capabilities=((int(major), int(minor)),) if recipe.compute_capabilities else (),
    )


def _shapes(graph: Graph, three: tuple[Bucket, Bucket, Bucket]) -> Mapping[str, Any]:
    return {spec.name: tuple(spec.shape_at(bucket) for bucket in three) for spec in graph.inputs}


def _check_on_gpu(bundle: Bundle, name: str, plan: PlanFile, ladder: Ladder) -> dict[str, Any]:
    """Run the plan as the worker will. Imported here: without a driver the backend cannot even be imported."""
    from engine.backends.tensorrt import TensorRtEngine

    engine = TensorRtEngine(bundle, name, plan)
    try:
        engine.warm_up()
        return gate(bundle, name, engine, ladder, plan.plan.precision)
    finally:
        engine.close()


def _note_parity(folder: Path, kind: str, name: str, figures: dict[str, Any]) -> None:
    """Put the gate's figures into parity.json and bring the manifest up to date."""
    parity = json.loads((folder / PARITY).read_bytes()) if (folder / PARITY).exists() else {}
    parity.setdefault(kind, {})[name] = figures
    _replaced(folder / PARITY, json.dumps(parity, indent=1, ensure_ascii=False).encode() + b"\n")
    write_manifest(folder, open_bundle(folder).manifest)


def _replaced(path: Path, content: bytes) -> Path:
    """Write a new file at `path`: what stands there may be a link to another bundle's file."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def _told(figures: Mapping[str, Any]) -> str:
    return (
        f"cosine at least {figures['min_cosine']}, relative difference at most {figures['max_relative_difference']:.0e}"
    )
