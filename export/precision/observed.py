"""What tensors inside a graph hold, row by row: for calibration, and to see where int8 and half precision lose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import helper

from engine.tensors import Array, Row
from export.nodes import replace_all


def observed(
    path: Path, names: Sequence[str], rows: Iterable[Row], *, model: Any = None, optimised: bool = True
) -> Iterator[Mapping[str, Array]]:
    """The tensors `names` of the graph at `path`, one row at a time.

    `model` is another graph to run in its place, whose weights lie beside `path`. Without `optimised` every node is run
    as it stands in the graph.
    """
    model = onnx.load(path, load_external_data=False) if model is None else model
    replace_all(model.graph.output, map(helper.make_empty_tensor_value_info, names))
    file = path.with_name("observed.onnx")  # where the weights are
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnx.save(model, file)
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    finally:
        file.unlink(missing_ok=True)
    inputs = [tensor.name for tensor in session.get_inputs()]
    for row in rows:
        yield dict(zip(names, session.run(names, {name: row.feeds[name][None] for name in inputs}), strict=True))
