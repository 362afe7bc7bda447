"""The floor of engines: ONNX Runtime's session as a script would hold it, asked as engine_alone.py is.

    python onnxruntime_alone.py GRAPH FUSED THREADS

FUSED is 1 when ONNX Runtime optimised the graph at export. Imports nothing of this project.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from typing import Any

import numpy as np
import onnxruntime as ort


def main(graph: str, fused: str, threads: str) -> None:
    """Load, say so, answer line by line until the input ends."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.log_severity_level = 3
    if fused == "1":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            found = _rows(session, names, question) if "rows" in question else _shape(session, names, question)
        except Exception as error:  # the one who asked decides
            found = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(found), flush=True)


def _shape(session: Any, names: list[str], question: dict[str, Any]) -> dict[str, Any]:
    rng, shape = np.random.default_rng(0), (question["batch"], question["length"])
    feeds = {name: np.full(shape, int(name == "attention_mask"), np.int32) for name in names}
    feeds["input_ids"] = rng.integers(0, 40, shape).astype(np.int32)
    end = time.perf_counter() + question["warm_up_ms"] / 1e3
    session.run(None, feeds)
    while time.perf_counter() < end:
        session.run(None, feeds)
    took: list[float] = []
    first = begin = time.perf_counter()
    while begin < first + question["duration_s"] or len(took) < question["iterations"]:
        session.run(None, feeds)
        now = time.perf_counter()
        took.append((now - begin) * 1e3)
        begin = now
    return {"ms": took, "seconds": begin - first}


def _rows(session: Any, names: list[str], question: dict[str, Any]) -> dict[str, Any]:
    rows, size = question["rows"], question["batch"]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    found, seconds = [""] * len(rows), 0.0
    for start in range(0, len(order), size):
        some = order[start : start + size]
        begin = time.perf_counter()
        feeds = {name: np.zeros((len(some), max(len(rows[index]) for index in some)), np.int32) for name in names}
        for at, index in enumerate(some):
            feeds["input_ids"][at, : len(rows[index])] = rows[index]
            feeds["attention_mask"][at, : len(rows[index])] = 1
        vectors = session.run(None, feeds)[0]
        seconds += time.perf_counter() - begin
        for at, index in enumerate(some):
            found[index] = base64.b64encode(vectors[at].astype("<f4").tobytes()).decode()
    return {"seconds": seconds, "embeddings": found}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", sys.argv[3])
    main(*sys.argv[1:])
