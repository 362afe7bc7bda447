"""Plans that a boot built on the GPU that it woke up on, kept on the volume for the boots after it.

    PLAN_CACHE/<graph>-<digest>/sm_89-trt10.13.0-fp16.plan + .json     digest: of all that a build goes by (`folder_of`)
    PLAN_CACHE/<graph>-<digest>/NVIDIA_L4-trt10.13.0.35-auto.late      late.py's
    PLAN_CACHE/model-NVIDIA_L4-trt10.13.0.35.timing.cache              what the builder measured, for one kind of GPU
    PLAN_CACHE/.lock                                                   held while a worker builds
    PLAN_CACHE/cuda-550.54.15/                                         kernel_cache.py's

The folder's name says what the plans were built from; the sidecar, written last, that the plan beside it is whole. A
timing cache serves every model whose graph has that name: layers of the same kind and size take the same time whatever
their weights are. build_plan.py writes all of it; here it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from engine import probe
from engine.errors import BundleError, EngineError
from engine.plans.sidecar import SUFFIX, PlanFile, read_sidecar, sidecar_of, source_digest

if TYPE_CHECKING:
    from engine.bundle import Bundle


def cached_plans(cache: Path, bundle: Bundle, graph: str) -> list[PlanFile]:
    """The plans in `cache` that were built from this very graph, by file name. Those half written are left out.

    Raises EngineError where the folder is there and cannot be read.
    """
    folder, found = folder_of(cache, bundle, graph), []
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX))
    except FileNotFoundError:
        return []
    except OSError as error:  # a volume that another user owns, say
        raise EngineError(f"{folder} cannot be read ({error.strerror})") from error
    for name in names:
        try:
            found.append(PlanFile(read_sidecar(folder / sidecar_of(name)), folder / name))
        except BundleError:
            continue  # no sidecar yet, or none that this version reads
    return found


def verify(plan: PlanFile) -> None:
    """Compare a plan with the size and SHA-256 in its sidecar. Raises EngineError."""
    try:
        content = plan.path.read_bytes()
    except OSError as error:
        raise EngineError(f"{plan.path} cannot be read ({error.strerror})") from error
    if len(content) != plan.plan.size or hashlib.sha256(content).hexdigest() != plan.plan.sha256:
        raise EngineError(f"{plan.path} is not the plan that its sidecar describes; remove it")


def folder_of(cache: Path, bundle: Bundle, graph: str) -> Path:
    """Where in `cache` the plans of this very graph lie.

    Its name covers what the bundle says to a build: the graph in each precision, its weights included, the precision
    for TensorRT, and the shapes. So two exports of one model that differ in any of it share a volume.
    """
    manifest = bundle.manifest
    described = manifest.graphs[graph]
    said = {
        "onnx": {one: source_digest(manifest.files, name) for one, name in described.onnx.items()},
        "precision": manifest.precisions.get("tensorrt"),
        "max_length": manifest.max_length(graph),
        "inputs": [(spec.name, spec.dtype, spec.shape) for spec in described.inputs],
    }
    return cache / f"{graph}-{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}"


def machine() -> str | None:
    """The kind of GPU and the version of TensorRT, for a file's name."""
    found, version = probe.gpu(), probe.tensorrt_version()
    if found is None or version is None:
        return None
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', found.name)}-trt{version}"
