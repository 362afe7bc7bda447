"""The gate of plans and of graphs in half precision: what they answer, bucket by bucket, beside fp32 on the CPU.

The rows are drawn from a seed and from what the graph itself says of its inputs, so that any task's can be compared.
Every bucket is run full, with rows of different lengths, through the engine that serves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.bucket import Bucket
from engine.bundle import Bundle, Graph
from engine.feed import run_rows
from engine.tensors import Array, Arrays, Row, TensorSpec
from export.errors import ParityFailed

if TYPE_CHECKING:
    from engine.backends.base import Engine

MIN_COSINE = 0.999
"""Of every row of every output with real numbers."""

MAX_DIFFERENCE = {"fp32": 1e-3, "tf32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
"""Largest difference of a component relative to the largest component of the reference. bf16 has 8 bits of mantissa."""

MIN_EQUAL = 0.9
"""Share of equal elements in an output of whole numbers: two nearly equal scores may change places."""

_REFERENCE_TOKENS = 4096
"""Of a bucket, at most so many are computed again on the CPU, in rows spread over the batch; the plan runs them all."""

_PASSES_THROUGH = frozenset("Cast Identity Reshape Flatten Unsqueeze Squeeze".split())


@dataclass(frozen=True)
class _Figure:
    bucket: Bucket
    output: str
    cosine: float = 1.0
    difference: float = 0.0
    equal: float = 1.0

    def passes(self, max_difference: float) -> bool:
        """Whether the figure keeps the limits; NaN does not."""
        return self.cosine >= MIN_COSINE and self.difference <= max_difference and self.equal >= MIN_EQUAL

    @property
    def badness(self) -> float:
        worst = max(1 - self.cosine, self.difference, 1 - self.equal)
        return worst if np.isfinite([self.cosine, self.difference]).all() else float("inf")


def gate(bundle: Bundle, graph: str, engine: Engine, buckets: Iterable[Bucket], precision: str) -> dict[str, Any]:
    """Compare `engine` at every bucket with the bundle's fp32 graph in ONNX Runtime on the CPU; figures for a sidecar.

    Raises ParityFailed.
    """
    buckets = list(buckets)
    rows = _Rows(bundle.manifest.graphs[graph], bundle.file(bundle.manifest.graphs[graph].onnx["fp32"]))
    reference = OnnxRuntimeEngine(in_precision(bundle, graph, "fp32"), graph, max_batch=max(b.batch for b in buckets))
    try:
        figures = [figure for bucket in buckets for figure in _compare(reference, engine, bucket, rows.at(bucket))]
    finally:
        reference.close()
    figures.sort(key=lambda figure: -figure.badness)
    limit = MAX_DIFFERENCE[precision]
    failed = [figure for figure in figures if not figure.passes(limit)]
    if failed:
        raise ParityFailed(
            f"{len(failed)} of {len(figures)} outputs in {precision} differ from fp32 on the CPU: a cosine of at least "
            f"{MIN_COSINE} and a relative difference of at most {limit:g} are required",
            [_cells(figure) for figure in failed[:10]],
            ("bucket", "output", "cosine", "difference", "equal"),
        )
    return {
        "buckets": len(buckets),
        "min_cosine": round(min(figure.cosine for figure in figures), 7),
        "max_relative_difference": float(f"{max(figure.difference for figure in figures):.0e}"),
        "min_equal": round(min(figure.equal for figure in figures), 4),
        "limits": {"min_cosine": MIN_COSINE, "max_relative_difference": limit},
    }


def in_precision(bundle: Bundle, graph: str, precision: str) -> Bundle:
    """`bundle` as if it had the graph of this precision only."""
    found = bundle.manifest.graphs[graph]
    fused = {precision: found.fused[precision]} if precision in found.fused else {}
    graphs = {graph: replace(found, onnx={precision: found.onnx[precision]}, fused=fused)}
    return replace(bundle, manifest=replace(bundle.manifest, precision=precision, graphs=graphs))


def _cells(figure: _Figure) -> tuple[str, ...]:
    shape = f"{figure.bucket.batch} x {figure.bucket.length}"
    return shape, figure.output, f"{figure.cosine:.7f}", f"{figure.difference:.1e}", f"{figure.equal:.3f}"


def _compare(reference: Engine, engine: Engine, bucket: Bucket, rows: Sequence[Row]) -> Iterator[_Figure]:
    found = run_rows(engine, rows)
    checked = max(1, min(len(rows), _REFERENCE_TOKENS // bucket.length))
    indices = sorted({round(index) for index in np.linspace(0, len(rows) - 1, checked)})
    for output in engine.outputs:
        pairs = [(_alone(reference, rows[index])[output.name], found[index][output.name]) for index in indices]
        yield _figure(bucket, output, pairs, [rows[index].length for index in indices])


def _alone(reference: Engine, row: Row) -> Arrays:
    return run_rows(reference, [row])[0]


def _figure(
    bucket: Bucket, output: TensorSpec, pairs: Sequence[tuple[Array, Array]], lengths: Sequence[int]
) -> _Figure:
    axis = output.length_axis
    if axis is not None:  # what stands behind a row's end is nobody's
        pairs = [
            (_first(a, axis - 1, length), _first(b, axis - 1, length))
            for (a, b), length in zip(pairs, lengths, strict=True)
        ]
    if not output.dtype.startswith("float"):
        return _Figure(bucket, output.name, equal=min(float(np.mean(a == b)) for a, b in pairs))
    found = [_distance(a.astype(np.float64).ravel(), b.astype(np.float64).ravel()) for a, b in pairs]
    with np.errstate(invalid="ignore"):
        cosine, difference = np.min([one[0] for one in found]), np.max([one[1] for one in found])  # NaN stays NaN
    return _Figure(bucket, output.name, float(cosine), float(difference))


def _first(values: Array, axis: int, length: int) -> Array:
    return values[(slice(None),) * axis + (slice(0, length),)]


def _distance(expected: Array, found: Array) -> tuple[float, float]:
    with np.errstate(all="ignore"):  # zeros and NaN fail the limits, which is what they should do
        cosine = expected @ found / (np.linalg.norm(expected) * np.linalg.norm(found))
        return float(cosine), float(np.abs(expected - found).max() / np.abs(expected).max())


class _Rows:
    """Full batches of rows for any graph, drawn from a seed.

    Whole numbers that index a table are drawn from its size; others are a mask: 1 up to the end of the row. Real
    numbers are normal, bytes are any.
    """

    def __init__(self, graph: Graph, onnx: Path) -> None:
        self._inputs = graph.inputs
        self._tables = _tables(onnx)

    def at(self, bucket: Bucket) -> list[Row]:
        """As many rows as `bucket` holds, the first as long as it, the others of any length."""
        rng = np.random.default_rng([bucket.batch, bucket.length])
        lengths = [bucket.length, *(int(n) for n in rng.integers(1, bucket.length + 1, bucket.batch - 1))]
        return [
            Row({spec.name: self._values(spec, length, rng) for spec in self._inputs}, length) for length in lengths
        ]

    def _values(self, spec: TensorSpec, length: int, rng: np.random.Generator) -> Array:
        shape = spec.shape_at(Bucket(1, length))[1:]
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            return rng.standard_normal(shape).astype(dtype)
        if dtype == np.uint8:
            return rng.integers(0, 256, shape).astype(dtype)
        size = self._tables.get(spec.name)
        return np.ones(shape, dtype) if size is None else rng.integers(0, size, shape).astype(dtype)


def _tables(onnx: Path) -> Mapping[str, int]:
    """Input -> rows of the smallest table that it indexes, followed through nodes that change no value."""
    from onnx import load

    graph = load(onnx, load_external_data=False).graph
    sizes = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    origin = {tensor.name: tensor.name for tensor in graph.input}
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _PASSES_THROUGH and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in sizes and node.input[1] in origin:
            name = origin[node.input[1]]
            found[name] = min(found.get(name, sizes[node.input[0]]), sizes[node.input[0]])
    return found
