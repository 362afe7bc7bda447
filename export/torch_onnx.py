"""Tracing with torch's own exporter: for models whose inputs and outputs the task defines itself, in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import Refused
from export.nodes import Axes
from export.source import first_line, quiet

if TYPE_CHECKING:
    from export.source import Source


@dataclass(frozen=True)
class Traced:
    """A torch module that answers with a mapping of outputs, and its inputs: name, dtype, axes and an example each.

    Examples have a batch of two. `lengths`: names of the inputs whose second axis is "length".
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
    with quiet(), torch.inference_mode():
        outputs = {name: _narrow(values) for name, values in traced.module(*examples).items()}
        flat = _Flat(traced.module)
        axes = {name: _dynamic(of) for name, _, of, _ in traced.inputs}
        try:
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
            raise Refused(f"{source.model} ({source.architecture}) cannot be traced: {first_line(error)}") from error
    model = onnx.load(path)
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


def _Flat(module: Any) -> Any:  # noqa: N802
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Any) -> Any:
            return tuple(_narrow(values) for values in self.module(*inputs).values())

    return Flat()
