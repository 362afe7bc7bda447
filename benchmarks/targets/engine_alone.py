"""Our engine in a process of its own, run at shapes or on rows that are asked for; see pipe.py for the lines.

python -m benchmarks.targets.engine_alone '{"bundle": ..., "engine": ..., "precision": ..., "batches": [1],
    "lengths": [16], "cuda_graph": true, "streams": 1}'

{"how": "copies", "batch": 1, "length": 16, "warm_up_ms": 200, "duration_s": 3, "iterations": 10}
    -> {"ms": [...], "seconds": 3.0}; "alone" and "handler" as Times has them; null ms where there is no such thing
{"rows": [[101, ...], ...], "batch": 16} -> {"seconds": 1.0, "embeddings": ["base64", ...]}, in the order given
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.engine_times import Times, Took
from benchmarks.engines import open_engine
from engine.backends.base import Engine
from engine.bucket import Bucket
from engine.bundle import Bundle, open_bundle

Json = dict[str, Any]


def main(asked: Mapping[str, Any]) -> None:
    """Load, warm up, say so, answer line by line until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    path = Path(asked["bundle"])
    arguments = (path, asked["engine"], asked["precision"], asked["batches"], asked["lengths"])
    engines = [open_engine(*arguments) for _ in range(asked.get("streams", 1))]
    bundle = open_bundle(path)
    for engine in engines:
        engine.warm_up()
    run = {"cuda_graph": asked.get("cuda_graph", True)}
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            found = _answer(json.loads(line), bundle, engines, run)
        except Exception as error:  # whatever a backend raises; the one who asked decides
            found = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(found), file=answers, flush=True)
    for engine in engines:
        engine.close()


def _answer(question: Json, bundle: Bundle, engines: Sequence[Engine], run: Mapping[str, Any]) -> Json:
    if "rows" in question:
        return embed_rows(engines[0], question["rows"], question["batch"])
    bucket = Bucket(question["batch"], question["length"])
    limits = {name: question[name] for name in ("warm_up_ms", "duration_s", "iterations")}
    with ThreadPoolExecutor(len(engines)) as pool:  # a thread an engine, as trtexec has a stream an execution context
        found = list(pool.map(lambda engine: _timed(Times(bundle, engine, **run, **limits), question, bucket), engines))
    if any(took is None for took in found):
        return {"ms": None}
    took = [one for one in found if one is not None]
    return {"ms": [ms for one in took for ms in one.ms], "seconds": max(one.seconds for one in took)}


def _timed(times: Times, question: Json, bucket: Bucket) -> Took | None:
    if question["how"] == "alone":
        return times.alone(bucket)
    return times.through_handler(bucket) if question["how"] == "handler" else times.with_copies(bucket)


def embed_rows(engine: Engine, rows: Sequence[Sequence[int]], size: int) -> Json:
    """Rows of token ids, sorted by length, in batches of `size`: how long all of them took, and their vectors."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    found: list[str] = [""] * len(rows)
    seconds = 0.0
    for start in range(0, len(order), size):
        some = order[start : start + size]
        begin = time.perf_counter()
        bucket = engine.buckets.fit(len(some), max(len(rows[index]) for index in some))
        for name, values in engine.feeds(bucket).items():
            values[:] = 0
            for at, index in enumerate(some):
                if name != "token_type_ids":
                    values[at, : len(rows[index])] = rows[index] if name == "input_ids" else 1
            values[len(some) :] = values[len(some) - 1]  # a row that is all mask may turn a softmax into NaN
        (vectors,) = engine.run(bucket).values()
        seconds += time.perf_counter() - begin
        for at, index in enumerate(some):
            found[index] = base64.b64encode(vectors[at].astype("<f4").tobytes()).decode()
    return {"seconds": seconds, "embeddings": found}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
