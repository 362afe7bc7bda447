"""The second exporter: torch.export, for what the first one does not know or cannot trace.

Torch may quietly settle for the shape that it traced at; the graph is therefore run at other shapes and compared with
the module before anything is made of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.command.said import first_line, quiet, unlogged
from export.errors import refusal_of
from export.nodes import complete_norms, keep_padding
from export.source import Source, untraceable
from export.tracing.opset import to_opset_17
from export.tracing.torch_onnx import declare, flat_module, outputs_of
from export.tracing.traceable import traceable

if TYPE_CHECKING:
    from export.tracing.torch_onnx import Traced

_BATCHES = (3, 1)
"""Of the rows that a graph is checked on, where its module brings none of other shapes."""
_OURS = "ours/"
_TOLERANCE = 1e-3
"""Relative to the largest value. Equal graphs differ by about 1e-6; the parity gate measures it later."""


def trace(source: Source, traced: Traced, path: Path) -> Path:
    """Write the ONNX graph of `traced` to `path`; integers among its outputs become int32.

    Raises Untraceable where that fails, or where the graph does not hold at every shape.
    """
    import torch

    with quiet(), _silent(), torch.no_grad(), traceable():
        try:
            outputs = outputs_of(traced)
            flat = flat_module(traced, list(outputs))
            _export(flat, traced, list(outputs), path)
        except Exception as error:  # whatever the tracer comes across, it is this model that it cannot do
            if (refused := refusal_of(error)) is not None:
                raise refused from error
            raise untraceable(source, _root(error)) from error
        _finish(source, traced, outputs, path)
        for values in traced.others or _others(traced):
            _check(source, flat, traced, values, list(outputs), path)
    return path


def _others(traced: Traced) -> list[list[Any]]:
    import torch

    return [[values[torch.arange(batch) % 2] for values in traced.examples] for batch in _BATCHES]


def _export(flat: Any, traced: Traced, outputs: Sequence[str], path: Path) -> None:
    import torch

    from export.tracing.opset import OPSET

    free = [
        {at: torch.export.Dim.AUTO for at, one in enumerate(axes) if isinstance(one, str)}
        for _, _, axes, _ in traced.inputs
    ]
    program = torch.onnx.export(
        flat,
        traced.examples,
        # Not as they are called: the tracer names tensors after operators, and so perhaps one like an output.
        input_names=[_OURS + name for name, *_ in traced.inputs],
        output_names=[_OURS + name for name in outputs],
        dynamic_shapes=(tuple(free),),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    program.save(str(path), external_data=True)


def _finish(source: Source, traced: Traced, outputs: Mapping[str, Any], path: Path) -> None:
    """Lower the opset, and drop what the tracer notes beside the graph: lines of source and paths of this machine.

    Its tensors get a prefix, so that none is called like one that the task adds.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    against = to_opset_17(model)
    if against is not None:
        raise untraceable(source, ValueError(f"it needs {against} of ONNX's opset 18, and bundles are of opset 17"))
    for part in (model, graph, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for tensor in (*graph.initializer, *graph.input, *graph.output):
        tensor.name = _renamed(tensor.name)
    _strip_nodes(graph)
    declare(source, graph, traced, outputs)
    keep_padding(graph)
    complete_norms(graph)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _strip_nodes(graph: Any) -> None:
    del graph.value_info[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        node.input[:] = [_renamed(name) for name in node.input]
        node.output[:] = [_renamed(name) for name in node.output]
        for inner in (attribute.g for attribute in node.attribute if attribute.HasField("g")):
            _strip_nodes(inner)
            for tensor in (*inner.initializer, *inner.input, *inner.output):
                tensor.name = _renamed(tensor.name)


def _renamed(name: str) -> str:
    return name.removeprefix(_OURS) if name.startswith(_OURS) or not name else f"traced/{name}"


def _check(
    source: Source, flat: Any, traced: Traced, values: Sequence[Any], outputs: Sequence[str], path: Path
) -> None:
    """Compare the graph with the module at one shape. Raises Untraceable."""
    import onnxruntime as ort

    shape = " x ".join(str(size) for size in values[0].shape)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is told in our own words
    inputs = dict(zip((name for name, *_ in traced.inputs), values, strict=True))
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        read = {tensor.name for tensor in session.get_inputs()}
        found = session.run(list(outputs), {name: one.numpy() for name, one in inputs.items() if name in read})
    except Exception as error:  # ONNX Runtime's own, which share no base
        if refusal_of(error) is not None:
            raise
        raise untraceable(source, ValueError(f"{_FIXED} does not run at {shape}: {first_line(error)}")) from error
    for mine, theirs in zip(flat(*values), found, strict=True):
        expected = mine.numpy()
        if theirs.shape != expected.shape or np.abs(theirs - expected).max() > _TOLERANCE * np.abs(expected).max():
            raise untraceable(source, ValueError(f"{_FIXED} answers otherwise at {shape} than where it was traced"))


_FIXED = "it has no graph for every shape: what was traced"


def _root(error: BaseException) -> Exception:
    """What was raised first: what comes out says which step failed, and what to do next with torch's own tools."""
    found = error
    while found.__cause__ is not None:
        found = found.__cause__
    return found if isinstance(found, Exception) else ValueError(str(found))


@contextmanager
def _silent() -> Iterator[None]:
    """Keep back the tracer's notes on its steps, and the program that it prints where it fails."""
    with unlogged(logging.CRITICAL), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield
