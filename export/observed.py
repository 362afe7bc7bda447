"""What tensors inside a graph hold, row by row: what calibration and the search for what int8 loses look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import helper

from engine.tensors import Array, Row


def observed(path: Path, names: Sequence[str], rows: Iterable[Row], model: Any = None) -> Iterator[Mapping[str, Array]]:
    """The tensors `names` of the graph at `path`, one row at a time.

    `model` is another graph to run in its place, whose weights lie beside `path`.
    """
    model = onnx.load(path, load_external_data=False) if model is None else model
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    file = path.with_name("observed.onnx")  # where the weights are
    try:
        onnx.save(model, file)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    finally:
        file.unlink(missing_ok=True)
    inputs = [tensor.name for tensor in session.get_inputs()]
    for row in rows:
        yield dict(zip(names, session.run(names, {name: row.feeds[name][None] for name in inputs}), strict=True))
