"""What a bundle holds, and which of its plans could run here. Rule: reads files, asks the driver, loads no engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.bundle import REBUILD, Bundle, open_bundle
from engine.errors import BundleError
from engine.plans.sidecar import Machine, Plan, PlanFile, mismatch, plans_of, stale
from engine.probe import gpu, tensorrt_version
from engine.sizes import readable
from engine.table import table

_PARITY = "parity.json"


def describe(path: Path, *, verify: bool = False) -> dict[str, Any]:
    """The bundle at `path` in words and numbers that JSON has; `verify` hashes its files. Raises BundleError."""
    bundle = open_bundle(path)
    if verify:
        bundle.verify()
    manifest = bundle.manifest
    parity = _parity(bundle)
    return {
        "model": manifest.model,
        "revision": manifest.revision,
        "code": dict(manifest.code),
        "adapters": {name: dict(of) for name, of in manifest.adapters.items()},
        "architecture": manifest.architecture,
        "task": manifest.task,
        "precision": manifest.precision,
        "sha256": bundle.sha256,
        "verified": verify,
        "bytes": sum(size for size, _ in manifest.files.values()),
        "graphs": {name: _graph(bundle, name, parity) for name in manifest.graphs},
        "plans": [_plan(bundle, name, found, parity) for name in manifest.graphs for found in plans_of(bundle, name)],
        "versions": dict(manifest.versions),
    }


def _graph(bundle: Bundle, name: str, parity: Mapping[str, Any]) -> dict[str, Any]:
    graph = bundle.manifest.graphs[name]
    files = [(precision, "any", file) for precision, file in graph.onnx.items()]
    files += [(precision, "CPU", file) for precision, file in graph.fused.items()]
    return {
        "inputs": {spec.name: [spec.dtype, *spec.shape] for spec in graph.inputs},
        "outputs": {spec.name: [spec.dtype, *spec.shape] for spec in graph.outputs},
        "onnx": [
            {
                "file": file,
                "precision": precision,
                "for": use,
                "bytes": bundle.manifest.files[file][0],
                "parity": parity.get("graphs", {}).get(file),
            }
            for precision, use, file in files
        ],
    }


def _plan(bundle: Bundle, graph: str, found: PlanFile, parity: Mapping[str, Any]) -> dict[str, Any]:
    plan = found.plan
    file = found.path.relative_to(bundle.path).as_posix()
    obstacle = stale(plan, bundle) or _obstacle(plan)
    return {
        "file": file,
        "graph": graph,
        "runtime": plan.runtime,
        "tensorrt_version": plan.tensorrt_version,
        "architecture": plan.architecture,
        "gpu": plan.gpu_name,
        "precision": plan.precision,
        "hardware_compatibility": plan.hardware_compatibility,
        "version_compatible": plan.version_compatible,
        "batches": list(plan.batches),
        "lengths": list(plan.lengths),
        "profiles": len(plan.profiles),
        "bytes": plan.size,
        "latencies_us": [[b.batch, b.length, us] for b, us in zip(plan.ladder, plan.latencies_us, strict=False)],
        "usable_here": obstacle is None,
        "obstacle": obstacle,
        "parity": parity.get("plans", {}).get(file),
    }


def _obstacle(plan: Plan) -> str | None:
    """Why this machine cannot run `plan`; None when it can."""
    found = gpu()
    if found is None:
        return "there is no NVIDIA driver or no GPU here"
    version = tensorrt_version()
    if version is None:
        return "TensorRT is not installed here"
    return mismatch(plan, Machine(version, ".".join(map(str, found.compute_capability)), found.name))


def _parity(bundle: Bundle) -> dict[str, Any]:
    """Raises BundleError for a damaged file, of which nothing was verified."""
    if _PARITY not in bundle.manifest.files:
        return {}
    path = bundle.file(_PARITY)
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); {REBUILD}") from error
    except ValueError as error:
        raise BundleError(f"{path} is not JSON ({error}); {REBUILD}") from error
    return found if isinstance(found, dict) else {}


def text(found: Mapping[str, Any]) -> str:
    """What `describe` returned, as tables for a terminal."""
    head = [(name, str(found[name] or "-")) for name in ("model", "revision")]
    head += [("code", f"{repository} at {commit}") for repository, commit in found["code"].items()]
    head += [("adapter", f"{name} at {of['revision'] or of['sha256']}") for name, of in found["adapters"].items()]
    head += [(name, str(found[name] or "-")) for name in ("architecture", "task", "precision")]
    if found["verified"]:
        head.append(("verified", "every file has the SHA-256 that the manifest says"))
    onnx = [
        (name, file["file"], file["precision"], file["for"], readable(file["bytes"]), _figures(file["parity"]))
        for name, graph in found["graphs"].items()
        for file in graph["onnx"]
    ]
    parts = [table([*head, ("size", readable(found["bytes"])), ("sha256", found["sha256"])])]
    if not onnx:
        return "\n\n".join([*parts, f"no graphs and no plans, for {found['task']} has no model"])
    parts.append(table([("GRAPH", "ONNX", "PRECISION", "FOR", "SIZE", "PARITY"), *onnx]))
    plans = [
        (
            Path(plan["file"]).name,
            plan["graph"],
            f"{plan['architecture']}{f' ({plan_gpu})' if (plan_gpu := plan['gpu']) else ''}",
            f"{'RTX ' if plan['runtime'] == 'tensorrt_rtx' else ''}{plan['tensorrt_version']}",
            plan["precision"],
            f"{_range(plan['batches'])} x {_range(plan['lengths'])}",
            _latencies([us for *_, us in plan["latencies_us"]]),
            readable(plan["bytes"]),
            _figures(plan["parity"]),
        )
        for plan in found["plans"]
    ]
    if not plans:
        return "\n\n".join([*parts, "no plans; `python -m export plan BUNDLE` on a GPU adds one"])
    header = ("PLAN", "GRAPH", "FOR", "TENSORRT", "PRECISION", "BATCHES x LENGTHS", "US A RUN", "SIZE", "PARITY")
    here = [(Path(plan["file"]).name, plan["obstacle"] or "usable") for plan in found["plans"]]
    return "\n\n".join([*parts, table([header, *plans]), table([("PLAN", "HERE"), *here])])


def _figures(parity: Mapping[str, Any] | None) -> str:
    """The gate's figures, whatever the task measures: those whose names open with min or max.

    A bundle that may fail the gate may have null there: JSON has no NaN.
    """
    if not parity:
        return "-"
    shown = {name: value for name, value in parity.items() if name.startswith(("min_", "max_"))}
    return ", ".join(
        f"{name.replace('_', ' ')} {'not a number' if value is None else f'{value:.7g}'}"
        for name, value in shown.items()
    )


def _latencies(found: Sequence[int]) -> str:
    return f"{min(found)} to {max(found)}" if found else "-"


def _range(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes)) if len(sizes) < 8 else f"{sizes[0]}..{sizes[-1]} ({len(sizes)})"
