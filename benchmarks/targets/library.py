"""A library alone, in a process that embeds the texts of every line that it reads; see pipe.py for the lines.

    python library.py NAME MODEL_FOLDER
    python library.py onnxruntime GRAPH FUSED TOKENIZER PROMPT MAX_LENGTH THREADS

A script of its own, for any Python that has the library. Each is called as its documentation says; the texts of a call
are sorted by length where the library does not do it itself. FUSED is 1 for a graph that ONNX Runtime optimised before,
PROMPT what the model has before every text, or nothing.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

Embed = Callable[[list[str]], Any]
"""Texts -> (texts, dimensions) float32, each of length 1."""

_TORCH_BATCH = 32  # sentence-transformers' own default
_FLOOR_BATCH = 16  # as benchmarks/floor.py: on a CPU larger ones gain nothing, and their padding costs


def sentence_transformers(folder: str) -> Embed:
    """`encode`, which sorts by length and makes batches of 32."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder)
    return lambda texts: model.encode(texts, show_progress_bar=False)


def transformers_pipeline(folder: str) -> Embed:
    """`pipeline`, with the mean over tokens that the model card asks for.

    One text at a time, as it does by default: in a batch it pads, and gives no mask to leave padding out of the mean.
    """
    import torch
    from transformers import pipeline

    pipe = pipeline("feature-extraction", model=folder, device=0 if torch.cuda.is_available() else -1)

    def embed(texts: list[str]) -> Any:
        rows = [found[0].mean(0) for found in pipe(texts, return_tensors=True, truncation=True)]
        return torch.nn.functional.normalize(torch.stack(rows).float()).cpu().numpy()

    return embed


def torch_eager(folder: str, compiled: bool = False) -> Embed:
    """The model itself in inference mode, in fp16 on a GPU; batches of 32 sorted by length, padded to their longest."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.float16) if on_gpu else ("cpu", torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=dtype).to(device).eval()
    # dynamic: else every length would be compiled by itself.
    called = torch.compile(model, dynamic=True) if compiled else model

    def run(texts: Sequence[str]) -> Any:
        feeds = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(device)
        mask = feeds["attention_mask"].unsqueeze(-1)
        with torch.inference_mode():
            hidden = called(**feeds).last_hidden_state.float()
            mean = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(mean).cpu().numpy()

    return lambda texts: _sorted(texts, run, _TORCH_BATCH)


def torch_compile(folder: str) -> Embed:
    """As torch_eager, through torch.compile with dynamic shapes."""
    return torch_eager(folder, compiled=True)


def onnxruntime(graph: str, fused: str, tokenizer_file: str, prompt: str, max_length: str, threads: str) -> Embed:
    """The floor: a session and a tokenizer, and nothing of this project but the exported graph."""
    import numpy as np
    import onnxruntime as ort
    from tokenizers import Tokenizer

    options = ort.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.log_severity_level = 3
    if fused == "1":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]
    tokenizer = Tokenizer.from_file(tokenizer_file)
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(max_length))

    def run(rows: Sequence[Any]) -> Any:
        feeds = {name: np.zeros((len(rows), max(map(len, rows))), np.int32) for name in names}
        for index, row in enumerate(rows):
            values = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
            for name, feed in feeds.items():
                feed[index, : len(row)] = values[name]
        found = session.run(None, feeds)[0]
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return lambda texts: _sorted(tokenizer.encode_batch([prompt + text for text in texts]), run, _FLOOR_BATCH)


def _sorted(rows: Sequence[Any], run: Callable[[Sequence[Any]], Any], size: int) -> Any:
    """`run` on rows of similar lengths, `size` at a time; the results in the order of `rows`."""
    import numpy as np

    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    found = [run([rows[index] for index in order[start : start + size]]) for start in range(0, len(rows), size)]
    return np.concatenate(found)[np.argsort(order)]


LIBRARIES: dict[str, Callable[..., Embed]] = {
    "sentence-transformers": sentence_transformers,
    "transformers-pipeline": transformers_pipeline,
    "torch-eager": torch_eager,
    "torch-compile": torch_compile,
    "onnxruntime": onnxruntime,
}


def main(name: str, *arguments: str) -> None:
    """Load, say so, answer line by line until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    embed = LIBRARIES[name](*arguments)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            vectors = embed(json.loads(line)["texts"])
            found = {"embeddings": [base64.b64encode(one.astype("<f4").tobytes()).decode() for one in vectors]}
        except Exception as error:  # whatever the library raises; the one who asked decides
            found = {"error": f"{type(error).__name__}: {error}"[:300]}  # type: ignore[dict-item]
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
