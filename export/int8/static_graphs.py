"""The graphs of int8 with scales that were calibrated, made of the portable graph; and which products suffer by it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
from onnx import helper, numpy_helper

from export.int8.calibrate import METHODS, Ranges, ranges
from export.int8.dynamic import DynamicInt8
from export.int8.search import Step
from export.int8.static import COMPARED, CPU, TENSORRT, activations, pair_of, quantizable, quantize, rounded_weights
from export.optimize import add_graph, fuse, remove_graph
from export.precision.observed import observed

FILES = {TENSORRT: "int8.onnx", CPU: "int8-static.cpu.onnx"}


class StaticInt8:
    """Makes the graphs of one kind, TENSORRT or CPU, of the portable graph that `int8` has: a Form (int8/ladder.py).

    `int8` smooths as well, and has the rows that are calibrated on.
    """

    methods = METHODS

    def __init__(self, int8: DynamicInt8, form: str) -> None:
        self.form = form
        self.path = int8.portable.with_name(FILES[form])
        self._int8 = int8
        self._found: tuple[object, dict[str, Ranges]] | None = None

    def gaining(self) -> list[tuple[str, float]]:
        """As DynamicInt8 says."""
        return self._int8.gaining()

    def untuned(self) -> Path | None:
        """Write a graph as fast as that of the first step, calibrated on two rows, for finding ranges takes time.

        Any range would do, but for its lower end: a Relu is part of a kernel on bytes only where that is 0. None where
        no weights can be bytes.
        """
        if not quantizable(onnx.load(self._int8.portable, load_external_data=False)):
            return None
        whole = self._int8.whole(Step())
        model = onnx.load(whole)
        found = ranges(observed(whole, activations(model, self.form), self._int8.rows[-2:]))
        quantize(model, found[METHODS[-1]], (), self.form)
        return self._int8.fused(self._saved(model), self.path.name)

    def trial(self, step: Step, method: str) -> Path:
        """Write what the gate compares; it replaces the one before. For the CPU it is the graph itself."""
        if self.form == CPU:
            return self.write(step, method)
        return fuse(self._saved(self._quantized(step, method, COMPARED)), self._int8.work / "fused")

    def write(self, step: Step, method: str) -> Path:
        """Write the graph of `step`, with ranges calibrated by `method`; it replaces the one before."""
        model = self._quantized(step, method, self.form)
        if self.form == CPU:
            return self._int8.fused(self._saved(model), self.path.name)
        add_graph(model, self.path, self._int8.places)
        onnx.checker.check_model(self.path, full_check=True)
        if not self.path.with_suffix(".bin").stat().st_size:  # all weights are those of the fp32 graph
            self.path.with_suffix(".bin").unlink()
        shutil.rmtree(self._int8.work)
        return self.path

    def remove(self) -> None:
        """Take back what `write` wrote, and the folder that comes and goes."""
        remove_graph(self.path)
        shutil.rmtree(self._int8.work, ignore_errors=True)

    def suffering(self, step: Step, method: str) -> list[str]:
        """Names of the nodes that have weights, the one first whose own output bytes of its inputs change most."""
        whole = self._int8.whole(step)
        found = self._ranges(step, whole)[method]
        model = onnx.load(whole)
        names = _with_losses(model, found, self.form)
        lost = dict.fromkeys(names, 0.0)
        outputs = [name for pair in names.values() for name in pair]
        for seen in observed(self._saved(model), outputs, self._int8.rows):
            for name, (off, all_) in names.items():
                lost[name] += float(seen[off]) / (float(seen[all_]) or 1.0)
        shutil.rmtree(self._int8.work)
        return sorted(lost, key=lambda name: -lost[name])

    def _quantized(self, step: Step, method: str, form: str) -> Any:
        whole = self._int8.whole(step)
        found = self._ranges(step, whole)[method]
        model = onnx.load(whole)
        quantize(model, found, step.kept, form)
        return model

    def _ranges(self, step: Step, whole: Path) -> dict[str, Ranges]:
        """By every method; they depend on what is smoothed, not on what stays fp32."""
        if self._found is None or self._found[0] != step.smoothed:
            names = activations(onnx.load(whole, load_external_data=False), self.form)
            self._found = step.smoothed, ranges(observed(whole, names, self._int8.rows))
        return self._found[1]

    def _saved(self, model: Any) -> Path:
        path = self._int8.work / "static.onnx"
        onnx.save(model, path, save_as_external_data=True, location="static.bin")
        return path


def _with_losses(model: Any, found: Ranges, form: str) -> dict[str, tuple[str, str]]:
    """Compute every product a second time on what bytes leave of its inputs, in place.

    Returns, by the product's name, the tensors of its squared error and of its squared output, sums both.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    done: set[str] = set()
    names: dict[str, tuple[str, str]] = {}
    for node in quantizable(model):
        source, weight, *bias = node.input
        if source not in done:
            done.add(source)
            graph.node.extend(pair_of(graph, source, *found[source], form))
        prefix = f"{node.name}/again"
        rounded = numpy_helper.from_array(
            rounded_weights(node, numpy_helper.to_array(weights[weight])), f"{prefix}/weight"
        )
        graph.initializer.append(rounded)
        twin = type(node)()
        twin.CopyFrom(node)
        twin.name = prefix
        twin.input[:] = [f"{source}/dequantized", rounded.name, *bias]
        twin.output[:] = [prefix]
        off, all_ = f"{prefix}/off", f"{prefix}/all"
        graph.node.extend(
            [
                twin,
                helper.make_node("Sub", [prefix, node.output[0]], [f"{prefix}/difference"]),
                helper.make_node("ReduceSumSquare", [f"{prefix}/difference"], [off], keepdims=0),
                helper.make_node("ReduceSumSquare", [node.output[0]], [all_], keepdims=0),
            ]
        )
        names[node.name] = off, all_
    return names
