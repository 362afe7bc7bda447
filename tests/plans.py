"""Plans and their sidecars, for tests that need no TensorRT."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.bucket import Bucket, Ladder
from engine.bundle import Manifest, open_bundle, write_manifest
from engine.plans.sidecar import Plan, Profile, source_digest, write_sidecar
from engine.tensors import TensorSpec

BATCHES, LENGTHS = (1, 4, 8), (8, 16, 32)
SPECS = (
    TensorSpec("input_ids", "int32", ("batch", "length")),
    TensorSpec("attention_mask", "int32", ("batch", "length")),
)


def profiles(
    batches: Sequence[int] = BATCHES, lengths: Sequence[int] = LENGTHS, specs: Sequence[TensorSpec] = SPECS
) -> tuple[Profile, ...]:
    """One profile a bucket: min = opt = max."""
    return tuple(
        Profile((bucket,), {spec.name: (spec.shape_at(bucket),) * 3 for spec in specs})
        for bucket in Ladder(batches, lengths)
    )


def profile_a_length(
    batches: Sequence[int] = BATCHES, lengths: Sequence[int] = LENGTHS, specs: Sequence[TensorSpec] = SPECS
) -> tuple[Profile, ...]:
    """One profile a length: every batch size."""
    made = []
    for length in lengths:
        ends = [Bucket(batch, length) for batch in (batches[0], batches[-1], batches[-1])]
        shapes: Any = {spec.name: tuple(spec.shape_at(end) for end in ends) for spec in specs}
        made.append(Profile(tuple(Bucket(batch, length) for batch in batches), shapes))
    return tuple(made)


def plan(**changes: Any) -> Plan:
    """A plan for an L4 on TensorRT 10.13."""
    made = Plan(
        runtime="tensorrt",
        tensorrt_version="10.13.0.35",
        compute_capability="8.9",
        hardware_compatibility="none",
        version_compatible=False,
        precision="fp16",
        gpu_name="NVIDIA L4",
        driver_version="550.54.15",
        cuda_version="11.8",
        batches=BATCHES,
        lengths=LENGTHS,
        profiles=profiles(),
        optimization_level=3,
        workspace_bytes=1 << 30,
        size=1,
        sha256="0" * 64,
        onnx="graphs/model/fp32.onnx",
        onnx_sha256="1" * 64,
    )
    return replace(made, **changes)


def add_plan(folder: Path, content: bytes = b"plan", graph: str = "model", **changes: Any) -> Plan:
    """Put `content` as a plan and its sidecar into the bundle in `folder`."""
    files: Mapping[str, tuple[int, str]] = open_bundle(folder).manifest.files
    onnx = f"graphs/{graph}/fp32.onnx"
    made = plan(
        **{
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "onnx": onnx,
            "onnx_sha256": source_digest(files, onnx),
            **changes,
        }
    )
    plans = folder / "graphs" / graph / "plans"
    plans.mkdir(parents=True, exist_ok=True)
    (plans / f"{made.stem}.plan").write_bytes(content)
    write_sidecar(made, plans)
    manifest: Manifest = open_bundle(folder).manifest
    write_manifest(folder, manifest)
    return made
