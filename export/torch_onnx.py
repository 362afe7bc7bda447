"""Tracing with torch's own exporter: for models whose inputs and outputs the task defines itself, in torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import Refused, refusal_of
from export.lean_trace import weights_outside
from export.nodes import Axes
from export.source import first_line, quiet
from export.traceable import traceable

if TYPE_CHECKING:
    from export.source import Source


@dataclass(frozen=True)
class Traced:
    """A torch module that answers with a mapping of outputs, and its inputs: name, dtype, axes and an example each.

    Examples have a batch of two.
    """

    module: Any
    inputs: Sequence[tuple[str, str, Axes, Any]]


def trace(source: Source, traced: Traced, path: Path) -> Path:
    """Write the ONNX graph of `traced` to `path`; integers among its outputs become int32.

    Raises Refused where the exporter cannot do it.
    """
    import onnx
    import torch

    from export.nodes import set_outputs, value_info
    from export.onnx_from_model import OPSET

    names = [name for name, *_ in traced.inputs]
    examples = tuple(example for *_, example in traced.inputs)
    with quiet(), torch.inference_mode(), traceable():
        outputs = {name: _narrow(values) for name, values in traced.module(*examples).items()}
        flat = _flat(traced.module)
        axes = {name: _dynamic(of) for name, _, of, _ in traced.inputs}
        try:
            with _silent(), weights_outside():
                torch.onnx.export(
                    flat,
                    examples,
                    str(path),
                    input_names=names,
                    output_names=list(outputs),
                    dynamic_axes={**axes, **{name: {0: "batch"} for name in outputs}},
                    opset_version=OPSET,
                    dynamo=False,
                )
        except Exception as error:  # whatever the tracer comes across, it is this model that it cannot do
            if refusal_of(error) is not None:  # of the disk or memory
                raise
            raise Refused(f"{source.model} ({source.architecture}) cannot be traced: {first_line(error)}") from error
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    given = {tensor.name for tensor in graph.input}
    del graph.input[:]
    graph.input.extend(value_info(name, dtype, of) for name, dtype, of, _ in traced.inputs if name in given)
    set_outputs(graph, [(name, _dtype(values), ("batch", *values.shape[1:])) for name, values in outputs.items()])
    onnx.save(model, path)
    return path


def _dynamic(axes: Axes) -> dict[int, str]:
    return {place: axis for place, axis in enumerate(axes) if isinstance(axis, str)}


def _dtype(values: Any) -> str:
    return str(np.dtype(str(values.dtype).removeprefix("torch.")))


def _narrow(values: Any) -> Any:
    import torch

    return values if values.is_floating_point() else values.to(torch.int32)


def _flat(module: Any) -> Any:
    """The module with a tuple for its mapping."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Any) -> Any:
            return tuple(_narrow(values) for values in self.module(*inputs).values())

    return Flat()


@contextmanager
def _silent() -> Iterator[None]:
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
