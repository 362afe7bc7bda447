"""The ladder of GPUs: fp16, fp16 with what it is too small for in fp32, bf16, fp32.

1. fp16: everything that has a type of its own.
2. The same, but fp32 for the nodes whose tensors come near the largest number of fp16 (overflow.py).
3. The same, and fp32 for all that sums, squares and exponentiates: LayerNorm, Softmax, Pow ...
4. The same, and fp32 for the nodes that lose most, twice as many each time.
5. bf16, and bf16 with sums in fp32: TensorRT only. 6. fp32.

What is compared is what rounding does to the graph (rounded.py): no GPU is needed, and none has been run.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.bundle import open_bundle
from export.errors import ParityFailed
from export.gate.limits import GateLimits
from export.optimize import remove_graph
from export.parity import Gate
from export.precision.candidates import candidate_of
from export.precision.half import half, lean_graph
from export.precision.options import AUTO, TARGETS
from export.precision.overflow import layers, losing, magnitudes, touching
from export.precision.rounded import rounded
from export.precision.trials import Checked, Climbed, Record, record_of
from export.source import Source
from export.write import add_portable

_FIRST_KEPT = 4
_MOST_KEPT = 0.5
"""Share of the nodes: with more of them in fp32, fp32 as a whole is about as fast."""
_LAYERS_TOLD = 64

Kept = dict[str, dict[str, float]]
"""Graph -> outputs of nodes that stay fp32, and what speaks against fp16 there."""


@dataclass(frozen=True)
class _Rung:
    name: str
    precision: str
    sums: bool
    kept: Kept = field(default_factory=dict)
    why: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two rungs one."""
        return self.precision, self.sums, tuple((name, tuple(sorted(kept))) for name, kept in self.kept.items())


class HalfGraphs:
    """Makes and compares graphs in half precision, each once, whatever targets it is for."""

    def __init__(self, gate: Gate, source: Source, folder: Path, limits: GateLimits, allow_failure: bool) -> None:
        self.gate = gate
        self.allow_failure = allow_failure
        self._source = source
        self._folder = folder
        self._limits = limits
        self._graphs = {
            name: folder / graph.onnx["fp32"] for name, graph in open_bundle(folder).manifest.graphs.items()
        }
        self._rows = {name: [row for row in gate.rows if row.graph == name] for name in self._graphs}
        self._done: dict[tuple[Any, ...], tuple[Record, Checked]] = {}
        self._near: Kept | None = None
        self._lost: dict[str, list[tuple[str, float]]] = {}

    def near_the_end(self) -> Kept:
        """Nodes whose tensors come near the largest number of fp16."""
        if self._near is None:
            self._near = {}
            for name, portable in self._graphs.items():
                with lean_graph(portable) as path:
                    if kept := touching(path, magnitudes(path, self._rows[name])):
                        self._near[name] = kept
        return self._near

    def losing(self, beside: Kept) -> dict[str, list[tuple[str, float]]]:
        """Nodes that lose most where sums are fp32 already, and the nodes of `beside`."""
        if not self._lost:
            for name, path in self._graphs.items():
                made = half(path, "fp16", kept=beside.get(name, {}))
                seen = rounded(made, path.with_name("rounded.onnx"))
                with lean_graph(path) as lean:
                    self._lost[name] = losing(lean, seen, self._rows[name])
                remove_graph(made, seen)
        return self._lost

    def check(self, rung: _Rung) -> tuple[Record, Checked]:
        """Make the rung's graphs, compare them, and leave them where they stand if they pass."""
        if rung.key in self._done:
            return self._done[rung.key]
        began = time.perf_counter()
        made = self.write(rung)
        checked: Checked
        seen = {name: rounded(path, path.with_name("rounded.onnx")) for name, path in made.items()}
        try:
            candidates = [
                candidate_of(
                    self._folder, rung.precision, seen[name], file=path.relative_to(self._folder).as_posix(), name=name
                )
                for name, path in made.items()
            ]
            checked = self.gate.check(self._limits, candidates)
        except ParityFailed as failure:
            checked = failure
        remove_graph(*seen.values())
        if isinstance(checked, ParityFailed):
            remove_graph(*made.values())
        kept = [layer for name, nodes in rung.kept.items() for layer in self._layers(name, nodes)]
        more: dict[str, Any] = {"kept_in_fp32": kept[:_LAYERS_TOLD]} if kept else {}
        if rung.why:
            more["because"] = rung.why
        self._done[rung.key] = record_of(rung.name, began, checked, **more), checked
        return self._done[rung.key]

    def _layers(self, name: str, nodes: Collection[str]) -> list[str]:
        with lean_graph(self._graphs[name]) as path:
            return layers(path, nodes)

    def write(self, rung: _Rung) -> dict[str, Path]:
        """Write the rung's graphs."""
        return {
            name: half(path, rung.precision, sums=rung.sums, kept=rung.kept.get(name, {}))
            for name, path in self._graphs.items()
        }

    def keep(self, precision: str) -> None:
        """Enter the graphs of `precision` in the manifest."""
        paths = {name: path.with_name(f"{precision}.onnx") for name, path in self._graphs.items()}
        add_portable(self._folder, precision, paths)

    def nodes(self) -> int:
        """How many nodes of the largest graph make a tensor that could be in half precision."""
        return max((len(found) for found in self._lost.values()), default=0)


def climb_gpu(graphs: HalfGraphs, target: str, asked: str) -> Climbed:
    """The fastest precision of `target` that passes. Raises ParityFailed where none does that was asked for."""
    outcome = Climbed("fp32", [])
    wanted = [one for one in TARGETS[target] if one != "int8"] if asked == AUTO else (asked,)
    last: ParityFailed | None = None
    rung: _Rung | None = None
    for rung in _rungs(graphs, wanted):
        record, checked = graphs.check(rung)
        outcome.records.append(record)
        if isinstance(checked, ParityFailed):
            last = checked
            continue
        graphs.keep(rung.precision)
        outcome.precision, outcome.graphs = rung.precision, checked["graphs"]
        return outcome
    if asked in (AUTO, "fp32"):
        return outcome.stay_fp32()
    assert rung is not None and last is not None
    if not graphs.allow_failure:
        raise last
    graphs.write(rung)
    graphs.keep(asked)
    outcome.precision, outcome.graphs = asked, dict(last.figures["graphs"])
    outcome.failures.append(str(last))
    return outcome


def _rungs(graphs: HalfGraphs, wanted: Collection[str]) -> Iterator[_Rung]:
    if "fp16" in wanted:
        yield _Rung("fp16", "fp16", sums=True)
        near = graphs.near_the_end()
        count = sum(map(len, near.values()))
        largest = max((value for kept in near.values() for value in kept.values()), default=0.0)
        why = f"magnitudes up to {largest:.3g} in fp32, where fp16 ends at 65504" if near else ""
        if near:
            yield _Rung(f"fp16, {count} nodes that overflow in fp32", "fp16", sums=True, kept=near, why=why)
        said = f", {count} nodes that overflow" if near else ""
        yield _Rung(f"fp16, sums, squares and exponentials{said} in fp32", "fp16", sums=False, kept=near, why=why)
        lost = graphs.losing(near)
        most = max((found[0][1] for found in lost.values() if found), default=0.0)
        count = _FIRST_KEPT
        while count <= _MOST_KEPT * graphs.nodes():
            kept = {name: {**dict(found[:count]), **near.get(name, {})} for name, found in lost.items()}
            yield _Rung(
                f"fp16, sums and the {count} nodes that lose most{said} in fp32",
                "fp16",
                sums=False,
                kept=kept,
                why=f"relative differences up to {most:.1g} begin there",
            )
            count *= 2
    if "bf16" in wanted:
        yield _Rung("bf16", "bf16", sums=True)
        yield _Rung("bf16, sums, squares and exponentials in fp32", "bf16", sums=False)
