"""The graph in the precision of a plan: made where the bundle lacks it, and checked before anything is built from it.

    graphs/<name>/fp16.onnx, fp16.bin             made from fp32.onnx
    parity.json                                   what the check came to, under "graphs"

Its form, which `--form` names:

    half        all of it is in half precision
    sums        what sums, squares and exponentiates is in fp32
    exported    as half, with attention as the model was exported instead of attention.py's
    hints       none is made: TensorRT 8 builds fp32.onnx and chooses types itself

Nothing named, it is half, and sums where half fails. Every half tensor is rounded to find out
(export/precision/rounded.py); ONNX Runtime's own fp16 on a CPU computes in fp32 and lets an overflow pass. With a GPU
the plan's own answers decide in the end (export/plan_from_onnx.py): a kernel that fuses may keep sums that rounding
would lose.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from engine.bucket import Bucket
from engine.bundle import Bundle, open_bundle, write_manifest
from engine.sizes import readable
from export.bundle_folder import changed_bundle_folder
from export.command.progress import stage
from export.errors import ParityFailed, Refused
from export.optimize import remove_graph
from export.plans.gate import gate
from export.plans.recipe import PlanRecipe
from export.precision.candidates import candidate_of, in_precision
from export.precision.half import TYPES, half
from export.precision.rounded import rounded
from export.write import PARITY, add_portable

_CPU_CHECKS = (Bucket(1, 16), Bucket(4, 64))
"""Buckets at which a graph is checked on the CPU, which computes it slowly; the plan is checked at all."""


class _Undo(Exception):
    """Leaves the bundle as it was."""


def check_without_gpu(path: Path, recipe: PlanRecipe) -> None:
    """Find out what stands against the plans of `recipe` before a GPU is paid for; the bundle stays as it is.

    Raises Refused or ParityFailed.
    """
    manifest = open_bundle(path).manifest
    recipe = recipe.of(manifest.precisions)
    recipe.check(manifest)
    with suppress(_Undo), changed_bundle_folder(path) as copy:
        for name in manifest.graphs:
            add_precision(copy, name, recipe.precision, recipe.form, rounding=True)
        raise _Undo


def add_precision(
    folder: Path, name: str, precision: str, form: str = "", *, rounding: bool = False, because: str = ""
) -> str:
    """Make the graph of `precision` part of the bundle in `folder`, after a check on the CPU; the form that it has.

    "" where none was made: the bundle had it. `form`: make it anew in this one. `rounding`: no GPU will run it here, so
    that the check has to find what overflows. `because`: said beside the figures. Raises Refused or ParityFailed.
    """
    graph = open_bundle(folder).manifest.graphs[name]
    if precision == "int8" and precision not in graph.onnx:
        raise Refused("the bundle has no int8 graph for TensorRT; export the model with --precision tensorrt=int8")
    if precision not in TYPES or form == "hints" or (precision in graph.onnx and not form):
        return ""
    if form:
        return _make(folder, name, precision, form, rounding, because)
    with suppress(ParityFailed):
        return _make(folder, name, precision, "half", True, because)
    return _make(folder, name, precision, "sums", rounding, "all of it in half fails the gate")


def _make(folder: Path, name: str, precision: str, form: str, rounding: bool, because: str) -> str:
    """Write the graph in `form`, enter it, and check it. Raises ParityFailed; one that was not there is gone then.

    Without `rounding` bf16 is not checked, which ONNX Runtime's CPU build cannot run.
    """
    before = open_bundle(folder).manifest
    portable = folder / before.graphs[name].onnx["fp32"]
    remove_graph(portable.with_name(f"{precision}.onnx"))  # what stands there may be a link to another bundle's
    with stage(precision) as note:
        path = half(portable, precision, sums=form != "sums", lean=form != "exported")
        onnx = path.relative_to(folder).as_posix()
        add_portable(folder, precision, {name: path})
        try:
            if rounding:
                figures = _check_rounded(folder, name, precision, path)
            elif precision == "fp16":
                bundle = open_bundle(folder)
                figures = _check(bundle, in_precision(bundle, name, precision), name, precision)
            else:
                figures = None
        except ParityFailed:
            if precision not in before.graphs[name].onnx:
                remove_graph(path)
                write_manifest(folder, before)
            raise
        if figures is not None:
            note_parity(folder, "graphs", onnx, figures)
        said = [readable(path.with_suffix(".bin").stat().st_size), told(figures) if figures else "", because]
        note(", ".join(part for part in said if part))
    return form


def _check_rounded(folder: Path, name: str, precision: str, path: Path) -> dict[str, Any]:
    seen = rounded(path, path.with_name("rounded.onnx"))
    try:
        return _check(open_bundle(folder), candidate_of(folder, precision, seen, name=name).view, name, precision)
    finally:
        remove_graph(seen)


def _check(bundle: Bundle, view: Bundle, name: str, precision: str) -> dict[str, Any]:
    """Compare the graph that `view` has in `precision` with fp32, both on the CPU."""
    from engine.backends.onnxruntime import OnnxRuntimeEngine

    with closing(OnnxRuntimeEngine(view, name, max_batch=4)) as engine:
        largest = engine.buckets.largest
        fitting = {Bucket(b.batch, min(b.length, largest.length)) for b in _CPU_CHECKS}
        return gate(bundle, name, engine, sorted(fitting), precision)


def note_parity(folder: Path, kind: str, name: str, figures: dict[str, Any]) -> None:
    """Put the gate's figures into parity.json and bring the manifest up to date."""
    parity = json.loads((folder / PARITY).read_bytes()) if (folder / PARITY).exists() else {}
    parity.setdefault(kind, {})[name] = figures
    replaced(folder / PARITY, json.dumps(parity, indent=1, ensure_ascii=False).encode() + b"\n")
    write_manifest(folder, open_bundle(folder).manifest)


def replaced(path: Path, content: bytes) -> Path:
    """Write a new file at `path`: what stands there may be a link to another bundle's file."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def told(figures: Mapping[str, Any]) -> str:
    """The gate's figures, for the stage's line."""
    return (
        f"cosine at least {figures['min_cosine']}, relative difference at most {figures['max_relative_difference']:.0e}"
    )
