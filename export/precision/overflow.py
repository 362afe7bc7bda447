"""Which nodes half precision is too small for, seen by comparing tensors inside the graph on the gate's rows.

Two things are looked at. The largest magnitude of every tensor in fp32: what comes near the largest number of fp16
stays fp32, with the node that makes it and those that read it. And how far every tensor is off in half precision: a
node whose inputs are right and whose output is not lost it itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from engine.tensors import Array, Row
from export.precision.half import LARGEST, float_tensors
from export.precision.observed import observed

NEAR = LARGEST / 2
"""What is larger in fp32 is kept there: inputs that nobody tried may be twice as large as those that somebody did."""

_ROWS_COMPARED = 4
_TOKENS_COMPARED = 128  # every tensor of such a row is in memory twice
_MAX = "/absmax"


def magnitudes(portable: Path, rows: Iterable[Row]) -> dict[str, float]:
    """The largest magnitude over all rows of every fp32 tensor that a node of the graph makes."""
    names = _made(portable)
    model = onnx.load(portable, load_external_data=False)
    for name in names:
        model.graph.node.append(helper.make_node("Abs", [name], [f"{name}/abs"]))
        model.graph.node.append(helper.make_node("ReduceMax", [f"{name}/abs"], [f"{name}{_MAX}"], keepdims=0))
    outputs = [f"{name}{_MAX}" for name in names]
    largest = dict.fromkeys(names, 0.0)
    for found in observed(portable, outputs, rows, model=model, optimised=False):
        for name in names:
            largest[name] = float(np.fmax(largest[name], found[f"{name}{_MAX}"]))
    return largest


def touching(portable: Path, largest: Mapping[str, float]) -> dict[str, float]:
    """Outputs of the nodes that make or read a tensor near the largest number of fp16, and the magnitude there."""
    graph = onnx.load(portable, load_external_data=False).graph
    near = {name: value for name, value in largest.items() if value > NEAR}
    found: dict[str, float] = {}
    for node in graph.node:
        values = [near[name] for name in (*node.input, *node.output) if name in near]
        if values:
            found.update(dict.fromkeys((name for name in node.output if name in largest), max(values)))
    return found


def losing(portable: Path, rounded: Path, rows: Sequence[Row]) -> list[tuple[str, float]]:
    """Outputs of nodes by how much relative difference the node itself adds in `rounded`, those that add most first."""
    names = _made(portable)
    both = set(names) & {
        name for node in onnx.load(rounded, load_external_data=False).graph.node for name in node.output
    }
    names = [name for name in names if name in both]
    short = [row for row in rows if row.length <= _TOKENS_COMPARED][-_ROWS_COMPARED:] or list(rows[:1])
    off = dict.fromkeys(names, 0.0)
    exact, ours = (observed(path, names, short, optimised=False) for path in (portable, rounded))
    for expected, found in zip(exact, ours, strict=True):
        for name in names:
            off[name] = max(off[name], _difference(expected[name], found[name]))
    added = {}
    for node in onnx.load(portable, load_external_data=False).graph.node:
        before = max((off.get(name, 0.0) for name in node.input), default=0.0)
        for name in node.output:
            if name in off and np.isfinite(before):
                added[name] = off[name] - before
    return sorted(((name, value) for name, value in added.items() if value > 0), key=lambda pair: -pair[1])


def layers(portable: Path, names: Collection[str]) -> list[str]:
    """The nodes that make the tensors `names`, as people know them: without the slash in front."""
    graph = onnx.load(portable, load_external_data=False).graph
    return sorted(
        {(node.name or node.output[0]).strip("/") for node in graph.node if any(one in names for one in node.output)}
    )


def _made(portable: Path) -> list[str]:
    floats = float_tensors(portable)
    graph = onnx.load(portable, load_external_data=False).graph
    return [name for node in graph.node if node.op_type != "Constant" for name in node.output if name in floats]


def _difference(expected: Array, found: Array) -> float:
    """The norm of the difference relative to the norm of `expected`; infinite where `found` has no number."""
    if not np.isfinite(found[np.isfinite(expected)]).all():
        return float("inf")
    kept = np.isfinite(expected)
    a, b = expected[kept].astype(np.float64), found[kept].astype(np.float64)
    norm = float(np.linalg.norm(a))
    return float(np.linalg.norm(a - b)) / norm if norm else float(np.linalg.norm(b) > 0)
