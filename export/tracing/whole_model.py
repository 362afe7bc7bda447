"""A model as a module to trace that has its own inputs and outputs, under their own names, as optimum's graphs have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from itertools import compress, islice
from typing import TYPE_CHECKING, Any

from export.errors import Refused
from export.own_task import file_of
from export.padding import model_to_trace
from export.tracing.torch_onnx import Traced

if TYPE_CHECKING:
    from export.nodes import Axes
    from export.source import Source

_SHORTEST = 3
"""Tokens. torch.export takes sizes of 0 and 1 for constants."""
_SEARCHED = 100
_BATCHES = (3, 1)
"""Of the rows that a graph is checked on; it is traced with two."""


def whole_model(source: Source) -> Traced:
    """The model of `source`, with two of the gate's rows, of different lengths where there are such."""
    import torch

    model = model_to_trace(source)
    first, other = _rows(source, model)

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            return self.model(**dict(zip(first, values, strict=True)))

    inputs = [
        (name, str(values.dtype).removeprefix("torch."), _axes(values, other[name]), _batch(values, 2))
        for name, values in first.items()
    ]
    others = [[_batch(row[name], batch) for name in first] for row, batch in zip((other, first), _BATCHES, strict=True)]
    return Traced(Whole().eval(), inputs, others)


def _rows(source: Source, model: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The longer one and the shorter one, as the model takes them: tensors with a batch of one. Raises Refused."""
    taken = set(signature(model.forward).parameters) & set(source.task.input_axes())
    found: dict[tuple[int, ...], Mapping[str, Any]] = {}
    for inputs in islice(_inputs(source), _SEARCHED):
        row = {name: values for name, values in inputs.items() if name in taken}
        found.setdefault(tuple(size for values in row.values() for size in values.shape[1:]), row)
    if not found or not all(found.values()):
        raise Refused(
            f"{file_of(source.task)}.probes gives rows without an input that `input_axes` and the model's `forward` "
            f"both name; `forward` takes {', '.join(signature(model.forward).parameters)}"
        )
    grows = [len(set(sizes)) > 1 for sizes in zip(*found, strict=True)]
    long = [shape for shape in found if all(size >= _SHORTEST for size in compress(shape, grows))]
    shapes = sorted((long or list(found))[:2], reverse=True)
    return found[shapes[0]], found[shapes[-1]]


def _inputs(source: Source) -> Iterator[Mapping[str, Any]]:
    return (inputs for probe in source.task.probes(source) for inputs in probe.inputs)


def _axes(values: Any, others: Any) -> Axes:
    """Those that differ between two rows have a name."""
    sizes = zip(values.shape[1:], others.shape[1:], strict=True)
    return ("batch", *(size if size == other else "length" for size, other in sizes))


def _batch(values: Any, batch: int) -> Any:
    return values.repeat(batch, *(1 for _ in values.shape[1:]))
