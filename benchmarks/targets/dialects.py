"""How each server wants to be asked for vectors over HTTP, and where they are in its reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.targets.base import vectors_of
from engine.tensors import Array

Json = dict[str, Any]


@dataclass(frozen=True)
class Dialect:
    """Routes, request and reply of one kind of server."""

    path: str
    health: str
    """GET, 200 when it can be asked."""
    ask: Callable[[Sequence[str]], Json]
    """The request for the vectors of some texts."""
    vectors: Callable[[Any], Array]
    """They, of the reply; (texts, dimensions) float32."""
    most_texts: int = 2048
    """In one request."""


def _job(texts: Sequence[str]) -> Json:
    return {"texts": list(texts), "encoding_format": "base64"} if len(texts) > 1 else {"text": texts[0]}


def _of_reply(reply: Json) -> Array:
    return vectors_of(reply["embeddings"]) if "embeddings" in reply else np.array([reply["embedding"]], np.float32)


SDK_TEST_SERVER = Dialect(
    "/runsync", "/", lambda texts: {"input": _job(texts)}, lambda reply: _of_reply(reply["output"])
)
"""RunPod's SDK with --rp_serve_api."""

OURS_WEB = replace(SDK_TEST_SERVER, health="/ping")
"""This worker with WORKER_LOOP=http."""

LITSERVE = Dialect("/predict", "/health", _job, _of_reply)
"""As targets/litserve_server.py writes its API: the payload of our jobs."""

OPENAI = Dialect(
    "/embeddings",
    "/health",
    lambda texts: {"model": "model", "input": list(texts), "encoding_format": "base64"},
    lambda reply: vectors_of([one["embedding"] for one in reply["data"]]),
)
"""infinity's server; the model is served under the name "model"."""

TEI = Dialect(
    "/embed", "/health", lambda texts: {"inputs": list(texts)}, lambda reply: np.array(reply, np.float32), most_texts=32
)
"""Text Embeddings Inference; 32 texts a request is what --max-client-batch-size allows by default."""


def triton(model: str, tokenizer_file: Path, max_length: int) -> Dialect:
    """Triton with our ONNX graph, or a plan of it, as `model`: it takes tokens, so clients make them (KServe v2)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding()

    def ask(texts: Sequence[str]) -> Json:
        rows = tokenizer.encode_batch(list(texts))
        values = {
            "input_ids": [row.ids for row in rows],
            "attention_mask": [row.attention_mask for row in rows],
            "token_type_ids": [row.type_ids for row in rows],
        }
        shape = [len(rows), len(rows[0])]
        tensor = {"datatype": "INT32", "shape": shape}
        return {
            "inputs": [
                {"name": name, **tensor, "data": list(chain.from_iterable(data))} for name, data in values.items()
            ],
            "outputs": [{"name": "embedding"}],
        }

    def vectors(reply: Json) -> Array:
        (found,) = reply["outputs"]
        return np.array(found["data"], np.float32).reshape(found["shape"])

    path = f"/v2/models/{model}"
    return Dialect(f"{path}/infer", f"{path}/ready", ask, vectors, most_texts=32)
