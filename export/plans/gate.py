"""The gate of plans and of graphs in half precision: what they answer, bucket by bucket, beside fp32 on the CPU.

The rows are drawn from a seed, from what the graph itself says of its inputs, and from a row of the task's own.
Every bucket is run full, with rows of different lengths, through the engine that serves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.batching.feed import run_rows
from engine.bucket import Bucket
from engine.bundle import Bundle, Graph
from engine.errors import EngineError
from engine.tasks import load_task
from engine.tensors import Array, Arrays, Row, TensorSpec
from export.errors import ParityFailed, Refused
from export.gate.cases import without_padding
from export.precision.candidates import in_precision

if TYPE_CHECKING:
    from engine.backends.base import Engine

MIN_COSINE = 0.999
"""Of every row of every output with real numbers."""

# tf32 reads what it multiplies with fp16's 10 bits of mantissa (NVIDIA's white paper of the A100), and tensor cores cut
# off what an fp32 has beyond them unless the kernel has rounded it (triton-lang/triton#4574). Inputs of products, on a
# CPU, of all-MiniLM-L6-v2: rounded 1.6e-3, cut off 6.3e-3; cut off, on random weights at BERT-base's size, 2.8e-3.
MAX_DIFFERENCE = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}
"""Largest difference of a component relative to the largest component of the reference. bf16 has 8 bits of mantissa; of
int8 another order of sums may move a byte by one."""

MIN_EQUAL = 0.9
"""Share of equal elements in an output of whole numbers: two nearly equal scores may change places. Of a list, such as
the best tokens, the share that is in both: their order is what the scores beside them say, and those are compared."""

_REFERENCE_TOKENS = 4096
"""Of a bucket, at most so many are computed again on the CPU, in rows spread over the batch, each once for all batch
sizes of a length. The plan runs them all, and none may hold NaN or infinity."""

_FIX = "build with another --precision, or export the model anew with --targets tensorrt --precision auto"

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


def gate(
    bundle: Bundle,
    graph: str,
    engine: Engine,
    buckets: Iterable[Bucket],
    precision: str,
    ran: Callable[[Bucket], None] = lambda bucket: None,
) -> dict[str, Any]:
    """Compare `engine` at every bucket with the bundle's fp32 graph in ONNX Runtime on the CPU; figures for a sidecar.

    int8 is compared with the int8 graph: how far that is from fp32 the export has found out on the task's own rows, and
    on rows drawn from a seed it says little. `ran` is called with every bucket that was run, length by length, while
    the rows still stand in its buffers. Raises ParityFailed; EngineError where `engine` fails, Refused where what it is
    compared with does.
    """
    exact = "int8" if precision == "int8" else "fp32"
    buckets = list(buckets)
    described = bundle.manifest.graphs[graph]
    rows = _Rows(described, bundle.file(described.onnx["fp32"]), _example(bundle, graph))
    figures: list[_Figure] = []
    with closing(OnnxRuntimeEngine(in_precision(bundle, graph, exact), graph, max_batch=1)) as reference:
        for _, of_length in groupby(sorted(buckets, key=itemgetter(1, 0)), key=itemgetter(1)):
            known: dict[int, Arrays] = {}
            for bucket in of_length:
                of_bucket = rows.at(bucket)
                found = run_rows(engine, of_bucket)
                ran(bucket)
                figures += _compare(reference, known, engine, bucket, of_bucket, found)
    figures.sort(key=lambda figure: -figure.badness)
    limit = MAX_DIFFERENCE[precision]
    failed = [figure for figure in figures if not figure.passes(limit)]
    if failed:
        raise ParityFailed(
            f"{len(failed)} of {len(figures)} outputs in {precision} differ from {exact} on the CPU: a cosine of at "
            f"least {MIN_COSINE} and a relative difference of at most {limit:g} are required; {_FIX}",
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


def _cells(figure: _Figure) -> tuple[str, ...]:
    shape = f"{figure.bucket.batch} x {figure.bucket.length}"
    return shape, figure.output, f"{figure.cosine:.7f}", f"{figure.difference:.1e}", f"{figure.equal:.3f}"


def _compare(
    reference: Engine,
    known: dict[int, Arrays],
    engine: Engine,
    bucket: Bucket,
    rows: Sequence[Row],
    found: Sequence[Arrays],
) -> Iterator[_Figure]:
    """`known` are answers of the reference to these rows, by their places, and gets those that were still missing."""
    checked = max(1, min(len(rows), _REFERENCE_TOKENS // bucket.length))
    indices = sorted({round(index) for index in np.linspace(0, len(rows) - 1, checked)})
    known |= {index: _expected(reference, rows[index]) for index in indices if index not in known}
    for output in engine.outputs:
        ours = [without_padding(one[output.name], output, row) for one, row in zip(found, rows, strict=True)]
        pairs = [(without_padding(known[index][output.name], output, rows[index]), ours[index]) for index in indices]
        figure = _figure(bucket, output, pairs)
        # Rows that are not compared must not hold NaN or infinity either.
        is_finite = not output.dtype.startswith("float") or all(np.isfinite(one).all() for one in ours)
        yield figure if is_finite else replace(figure, cosine=float("nan"))


def _expected(reference: Engine, row: Row) -> Arrays:
    try:
        return run_rows(reference, [row])[0]
    except EngineError as error:
        raise Refused(
            f"the bundle's own graph, which is compared with, fails on the CPU at a row of {row.length}: {error}; try "
            "other --lengths or fewer --batches, or export the model anew"
        ) from error


def _figure(bucket: Bucket, output: TensorSpec, pairs: Sequence[tuple[Array, Array]]) -> _Figure:
    """The worst of the rows, each expected and found, without padding."""
    if not output.dtype.startswith("float"):
        is_list = output.length_axis is None and len(output.shape) == 2
        same = _in_both if is_list else _at_the_same_place
        return _Figure(bucket, output.name, equal=min(same(a, b) for a, b in pairs))
    found = [_distance(a.astype(np.float64).ravel(), b.astype(np.float64).ravel()) for a, b in pairs]
    with np.errstate(invalid="ignore"):
        cosine, difference = np.min([one[0] for one in found]), np.max([one[1] for one in found])  # NaN stays NaN
    return _Figure(bucket, output.name, float(cosine), float(difference))


def _at_the_same_place(expected: Array, found: Array) -> float:
    return float(np.mean(expected == found))


def _in_both(expected: Array, found: Array) -> float:
    return float(np.mean(np.isin(expected, found)))


def _distance(expected: Array, found: Array) -> tuple[float, float]:
    if not expected.any() and not found.any():  # as in the export's gate
        return 1.0, 0.0
    with np.errstate(all="ignore"):  # zeros in one of them and NaN fail the limits, which is what they should do
        cosine = expected @ found / (np.linalg.norm(expected) * np.linalg.norm(found))
        scale = np.abs(expected).max()
        if expected.size == 1:  # a score alone may happen to be next to nothing
            cosine, scale = 1.0 + 0 * expected[0] * found[0], max(scale, 1.0)
        return float(cosine), float(np.abs(expected - found).max() / scale)


def _example(bundle: Bundle, graph: str) -> Row | None:
    """A row of the task's own examples for this graph."""
    task = load_task(bundle)
    rows = (row for example in task.examples for row in task.preprocess(task.parse(dict(example))))
    return next((row for row in rows if row.graph == graph), None)


class _Rows:
    """Full batches of rows for any graph, drawn from a seed.

    Real numbers are normal, bytes are any. Whole numbers that index a table are drawn from its size, between the first
    and the last of the example: a model may look for its end token. Of the others, those that grow with the row are a
    mask, 1 up to its end; those that do not say how much of the row there is.
    """

    def __init__(self, graph: Graph, onnx: Path, example: Row | None = None) -> None:
        self._inputs = graph.inputs
        self._tables = _tables(onnx)
        self._example = {} if example is None else example.feeds

    def at(self, bucket: Bucket) -> list[Row]:
        """As many rows as `bucket` holds, the first as long as it, the others of any length.

        Larger batches of that length have the same rows, and more.
        """
        return [self._row(bucket.length, place) for place in range(bucket.batch)]

    def _row(self, longest: int, place: int) -> Row:
        rng = np.random.default_rng([longest, place])
        length = int(rng.integers(1, longest + 1)) if place else longest
        return Row({spec.name: self._values(spec, length, rng) for spec in self._inputs}, length)

    def _values(self, spec: TensorSpec, length: int, rng: np.random.Generator) -> Array:
        shape = _shape(spec, length)
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            return rng.standard_normal(shape).astype(dtype)
        if dtype == np.uint8:
            return rng.integers(0, 256, shape).astype(dtype)
        size = self._tables.get(spec.name)
        if size is not None:
            return self._between_ends(spec, rng.integers(0, size, shape).astype(dtype))
        return np.ones(shape, dtype) if spec.length_axis is not None else self._extent(shape, dtype, length)

    def _between_ends(self, spec: TensorSpec, values: Array) -> Array:
        example = self._example.get(spec.name)
        if spec.length_axis is not None and example is not None and len(example):
            values[0], values[-1] = example[0], example[-1]
        return values

    def _extent(self, shape: tuple[int, ...], dtype: np.dtype[Any], length: int) -> Array:
        """Samples of a recording, the part of a canvas that an image fills; else a place in a text.

        Of texts the second place, behind the token that opens them, and of a text of one token that one: the reference
        has no padding behind it.
        """
        growing = [spec for spec in self._inputs if spec.length_axis is not None]
        samples = [max(_shape(spec, length)) for spec in growing if spec.dtype.startswith("float")]
        if samples:
            return np.full(shape, samples[0], dtype)
        whole = [_shape(spec, length)[: shape[0]] for spec in self._inputs if spec.dtype == "uint8" and shape]
        return np.array(whole[0], dtype) if whole else np.full(shape, min(1, length - 1), dtype)


def _shape(spec: TensorSpec, length: int) -> tuple[int, ...]:
    return spec.shape_at(Bucket(1, length))[1:]


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
