"""Tracing with torch's own exporter: for models whose inputs and outputs the task defines itself, in torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.command.said import quiet
from export.nodes import Axes, replace_all, set_outputs, value_info
from export.source import untraceable
from export.tracing.lean_trace import weights_outside
from export.tracing.traceable import traceable

if TYPE_CHECKING:
    from export.source import Source


@dataclass(frozen=True)
class Traced:
    """A torch module that answers with a mapping of outputs, and its inputs: name, dtype, axes and an example each.

    Examples have a batch of two.
    """

    module: Any
    inputs: Sequence[tuple[str, str, Axes, Any]]
    others: Sequence[Sequence[Any]] = ()
    """More examples of all inputs, of other batches and lengths: what a graph of torch.export is checked on."""

    @property
    def examples(self) -> tuple[Any, ...]:
        """What it is traced with."""
        return tuple(example for *_, example in self.inputs)


def trace(source: Source, traced: Traced, path: Path) -> Path:
    """Write the ONNX graph of `traced` to `path` by torchscript; integers among its outputs become int32.

    Raises Untraceable where the exporter cannot do it.
    """
    import onnx
    import torch

    from export.tracing.opset import OPSET

    names = [name for name, *_ in traced.inputs]
    with quiet(), torch.inference_mode(), traceable():
        axes = {name: _dynamic(of) for name, _, of, _ in traced.inputs}
        try:
            outputs = outputs_of(traced)
            flat = flat_module(traced, list(outputs))
            with silent(), weights_outside():
                torch.onnx.export(
                    flat,
                    traced.examples,
                    str(path),
                    input_names=names,
                    output_names=list(outputs),
                    dynamic_axes={**axes, **{name: {0: "batch"} for name in outputs}},
                    opset_version=OPSET,
                    dynamo=False,
                )
        except Exception as error:  # whatever the tracer comes across, it is this model that it cannot do
            raise untraceable(source, error) from error
    model = onnx.load(path, load_external_data=False)
    declare(source, model.graph, traced, outputs)
    onnx.save(model, path)
    return path


def declare(source: Source, graph: Any, traced: Traced, outputs: Mapping[str, Any]) -> None:
    """Give the inputs and outputs of `graph` the axes that they have.

    The outputs of a whole model are left to what the task puts behind them.
    """
    given = {tensor.name for tensor in graph.input}
    replace_all(graph.input, [value_info(name, dtype, of) for name, dtype, of, _ in traced.inputs if name in given])
    if source.task.traces_itself:
        set_outputs(graph, [(name, _dtype(values), ("batch", *values.shape[1:])) for name, values in outputs.items()])


def outputs_of(traced: Traced) -> dict[str, Any]:
    """What the module answers to other examples than those that it is traced with, where there are such.

    Some models keep tables of angles for the length that came last, and would be traced without making them.
    """
    import torch

    found = traced.module(*(traced.others[0] if traced.others else traced.examples)).items()
    return {name: _narrow(values) for name, values in found if isinstance(values, torch.Tensor)}


def _dynamic(axes: Axes) -> dict[int, str]:
    return {place: axis for place, axis in enumerate(axes) if isinstance(axis, str)}


def _dtype(values: Any) -> str:
    return str(np.dtype(str(values.dtype).removeprefix("torch.")))


def _narrow(values: Any) -> Any:
    import torch

    return values if values.is_floating_point() else values.to(torch.int32)


def flat_module(traced: Traced, outputs: Sequence[str]) -> Any:
    """The module with a tuple for its mapping."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = traced.module

        def forward(self, *inputs: Any) -> Any:
            answer = self.module(*inputs)
            return tuple(_narrow(answer[name]) for name in outputs)

    return Flat().eval()


@contextmanager
def silent() -> Iterator[None]:
    """Keep back the graph that the exporter prints where it fails, from C++ and to the file descriptor."""
    sys.stdout.flush()
    saved = os.dup(1)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
