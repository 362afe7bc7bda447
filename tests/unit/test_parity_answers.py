"""What the gate makes of a graph that does not run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engine.bundle import open_bundle
from export.candidates import of_bundle
from export.errors import Refused
from export.parity_answers import answers_of


def test_a_graph_that_does_not_run_is_refused(small_bundle: Path):
    file = small_bundle / "graphs/model/fp32.onnx"
    model = onnx.load(file)
    last = model.graph.node[-1]
    name = last.output[0]
    last.output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 5, 3]), "never"))
    model.graph.node.append(helper.make_node("Reshape", ["before", "never"], ["odd"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "axes"))
    model.graph.node.append(helper.make_node("ReduceSum", ["odd", "axes"], [name]))
    onnx.save(model, file)
    (candidate,) = of_bundle(open_bundle(small_bundle))
    source: Any = SimpleNamespace(model="m", architecture="Toy", task=SimpleNamespace(measures_of_all=()))
    with pytest.raises(Refused) as refused:
        list(answers_of(source, candidate, []))
    said = str(refused.value)
    assert said.startswith("the graph of m (Toy) does not run: ONNX Runtime failed at ")
    assert said.endswith("; try another --exporter")
