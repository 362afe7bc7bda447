"""The second exporter: torch.export, for architectures that optimum does not know.

What it traces has the model's own inputs and outputs under their own names, as optimum's graphs have, so that the rest
of the export sees no difference. Torch may quietly settle for the shape that it traced at; the graph is therefore run
at two other shapes and compared with the model before anything is made of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from inspect import signature
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import Refused, refusal_of
from export.opset import to_opset_17
from export.source import Source, first_line, quiet

_SHORTEST = 3
"""Tokens. torch.export takes sizes of 0 and 1 for constants."""
_BATCHES = (3, 1)
_OURS = "ours/"
_TOLERANCE = 1e-3
"""Relative to the largest value. Equal graphs differ by about 1e-6; the parity gate measures it later."""


def trace(source: Source, folder: Path) -> Path:
    """Trace the model of `source` and write the graph into `folder`; its path. Raises Refused where that fails."""
    import torch

    model = source.load_model()
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # a decoder would return its cache
    first, other = _rows(source, model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    with quiet(), _silent(), torch.no_grad():
        names = _outputs(model, first)
        try:
            _export(model, _batch(first, 2), names, path)
        except Exception as error:  # whatever the tracer comes across, it is this model that it cannot do
            if refusal_of(error) is not None:
                raise
            raise Refused(
                f"{source.model} ({source.architecture}) cannot be traced by torch.export: {first_line(error)}"
            ) from error
        _finish(source, path)
        for row, batch in zip((other, first), _BATCHES, strict=True):
            _check(source, model, _batch(row, batch), names, path)
    return path


def _rows(source: Source, model: Any) -> list[Mapping[str, Any]]:
    """Two of the gate's rows, of different lengths, as the model takes them: tensors with a batch of one."""
    taken = set(signature(model.forward).parameters) & set(source.task.input_axes())
    found: dict[int, Mapping[str, Any]] = {}
    rows = (inputs for probe in source.task.probes(source) for inputs in probe.inputs)
    for row in islice(rows, 100):
        length = row["input_ids"].shape[1]
        if length >= _SHORTEST:
            found.setdefault(length, {name: values for name, values in row.items() if name in taken})
        if len(found) == 2:
            break
    return [found[length] for length in sorted(found, reverse=True)]


def _batch(row: Mapping[str, Any], batch: int) -> dict[str, Any]:
    return {name: values.repeat(batch, 1) for name, values in row.items()}


def _outputs(model: Any, row: Mapping[str, Any]) -> list[str]:
    """The names of the tensors that the model answers with."""
    import torch

    return [name for name, values in model(**row).items() if isinstance(values, torch.Tensor)]


def _export(model: Any, inputs: Mapping[str, Any], outputs: Sequence[str], path: Path) -> None:
    import torch

    from export.onnx_from_model import OPSET

    class Flat(torch.nn.Module):
        """The model with tuples for its mappings."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            answer = self.model(**dict(zip(inputs, values, strict=True)))
            return tuple(answer[name] for name in outputs)

    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.onnx.export(
        Flat().eval(),
        tuple(inputs.values()),
        # Not as they are called: the tracer names tensors after operators, and so perhaps one like an output.
        input_names=[_OURS + name for name in inputs],
        output_names=[_OURS + name for name in outputs],
        dynamic_shapes=(tuple(free for _ in inputs),),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    program.save(str(path), external_data=True)


def _finish(source: Source, path: Path) -> None:
    """Lower the opset, and drop what the tracer notes beside the graph: lines of source and paths of this machine.

    Its tensors get a prefix, so that none is called like one that the task adds.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    against = to_opset_17(model)
    if against is not None:
        raise Refused(
            f"{source.model} ({source.architecture}) needs {against} of ONNX's opset 18 when torch.export traces it, "
            "and bundles are of opset 17; no bundle can be made of it"
        )
    for part in (model, graph, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for tensor in (*graph.initializer, *graph.input, *graph.output):
        tensor.name = _renamed(tensor.name)
    _strip_nodes(graph)
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


def _check(source: Source, model: Any, inputs: Mapping[str, Any], outputs: Sequence[str], path: Path) -> None:
    """Compare the graph with the model at one shape. Raises Refused."""
    import onnxruntime as ort

    shape = " x ".join(str(size) for size in inputs["input_ids"].shape)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is told in our own words
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        read = {tensor.name for tensor in session.get_inputs()}
        found = session.run(list(outputs), {name: v.numpy() for name, v in inputs.items() if name in read})
    except Exception as error:  # ONNX Runtime's own, which share no base
        if refusal_of(error) is not None:
            raise
        raise Refused(_fixed(source, f"does not run at {shape}: {first_line(error)}")) from error
    answer = model(**inputs)
    for name, values in zip(outputs, found, strict=True):
        expected = answer[name].numpy()
        if values.shape != expected.shape or np.abs(values - expected).max() > _TOLERANCE * np.abs(expected).max():
            raise Refused(_fixed(source, f"answers otherwise at {shape} than where it was traced"))


def _fixed(source: Source, what: str) -> str:
    return f"{source.model} ({source.architecture}) has no graph for every shape: what torch.export traced {what}"


@contextmanager
def _silent() -> Iterator[None]:
    """Keep back the tracer's notes on its steps, which quiet() does not know."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
