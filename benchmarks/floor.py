"""The floor: onnxruntime and tokenizers alone, nothing of this project but the exported graph."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from engine.bundle import open_bundle
from engine.probe import cpu_quota


def rows_per_second(bundle_path: Path, texts: Sequence[str]) -> float:
    """Texts embedded a second, one by one, after a warm-up on the first ten."""
    bundle = open_bundle(bundle_path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = cpu_quota()
    options.log_severity_level = 3
    graph = bundle.manifest.graphs["model"]
    session = ort.InferenceSession(str(bundle.file(graph.onnx["fp32"])), options)
    tokenizer = Tokenizer.from_file(str(bundle.file("tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(bundle.manifest.task_config["max_length"]))

    def embed(text: str) -> None:
        encoding = tokenizer.encode(text)
        values = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        values["token_type_ids"] = encoding.type_ids
        session.run(None, {spec.name: np.array([values[spec.name]], np.int32) for spec in graph.inputs})

    for text in texts[:10]:
        embed(text)
    begin = time.perf_counter()
    for text in texts:
        embed(text)
    return len(texts) / (time.perf_counter() - begin)
