"""Graphs that the gate compares with the reference: those of a bundle, and those that may come into it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from engine.bundle import Bundle, open_bundle


@dataclass(frozen=True)
class Candidate:
    """A graph to compare: its file's name in the bundle, and the bundle as if it had that one only."""

    graph: str
    file: str
    view: Bundle


def of_bundle(bundle: Bundle, name: str = "model") -> Iterator[Candidate]:
    """Graph `name` in the precision of the bundle: the fused file, and the portable one as if it were the only one."""
    graph, precision = bundle.manifest.graphs[name], bundle.manifest.precision
    if precision in graph.fused:
        yield Candidate(name, graph.fused[precision], bundle)
    if precision in graph.onnx:
        yield Candidate(name, graph.onnx[precision], portable(bundle, name, precision))


def portable(bundle: Bundle, name: str, precision: str = "fp32") -> Bundle:
    """`bundle` as if it had the portable graph `name` of `precision` alone."""
    graphs = {**bundle.manifest.graphs, name: replace(bundle.manifest.graphs[name], fused={})}
    return replace(bundle, manifest=replace(bundle.manifest, graphs=graphs, precision=precision))


def in_precision(bundle: Bundle, graph: str, precision: str) -> Bundle:
    """`bundle` as if it had the graph of this precision only."""
    found = bundle.manifest.graphs[graph]
    fused = {precision: found.fused[precision]} if precision in found.fused and precision != "int8" else {}
    graphs = {graph: replace(found, onnx={precision: found.onnx[precision]}, fused=fused)}
    return replace(bundle, manifest=replace(bundle.manifest, precision=precision, graphs=graphs))


def candidate_of(folder: Path, precision: str, path: Path, *, file: str = "", name: str = "model") -> Candidate:
    """The graph at `path`, below `folder`, as ONNX Runtime runs it on the CPU without changing it.

    It need not be in the manifest. `file` is the name that its figures get.
    """
    bundle = open_bundle(folder)
    relative = path.relative_to(folder).as_posix()
    graph = replace(bundle.manifest.graphs[name], fused={precision: relative})
    files = {**bundle.manifest.files, relative: (0, "")}
    graphs = {**bundle.manifest.graphs, name: graph}
    manifest = replace(bundle.manifest, graphs=graphs, precision=precision, files=files)
    return Candidate(name, file or relative, replace(bundle, manifest=manifest))
